"""The replay: a live run's snapshots, taken of a run that is over by what takes them in a live one."""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from lightning_utilities.core.rank_zero import rank_zero_info
from tqdm import tqdm

from egcam_lightning.callback import ExpectedGradCAMCallback
from egcam_lightning.config import CallbackConfig
from egcam_lightning.data.probe import is_batch
from egcam_lightning.explain.isolation import uninitialised
from egcam_lightning.history.history import History
from egcam_lightning.replaying.checkpoints import CheckpointFile, Moment, Paths, find_checkpoints
from egcam_lightning.replaying.progress import Progress
from egcam_lightning.training.failsafe import Failsafe
from egcam_lightning.training.fit import Fit
from egcam_lightning.training.lightning_compat import to_model, validation_data, validation_source
from egcam_lightning.training.session import Session

# A replay has no schedule: every checkpoint is looked at.
_SCHEDULE = {"max_overhead": None, "every_n_epochs": 1, "every_n_train_steps": None, "log_at_start": True}
_STREAMED = 32  # training batches that baselines are sampled from, where these have no index


def replay(
    checkpoints: Paths,
    module: LightningModule,
    datamodule: LightningDataModule | None = None,
    *,
    save_dir: str | PathLike[str] | None = None,
    accelerator: str = "auto",
    trust: bool = False,
    **settings: Any,
) -> History:
    """Look at a run that is over as the callback would have, at each of its checkpoints, without training.

    Images, metrics, drift, the audit of the last checkpoint, files and page are those of a live run. Baselines are
    training images evenly spaced in the data, as those of a live run's first snapshot, and the same for all
    checkpoints. Checkpoints that were finished stay so: what was interrupted goes on when it is called again, and so
    does a run that has got more checkpoints since.

    Args:
        checkpoints: files, or folders that hold them, of one run; they are taken in order of step.
        module: the module they are of, with any weights; it ends up with those that it has now.
        datamodule: its data; ``None`` where the module has its own loaders.
        save_dir: folder for files; ``None`` for ``replay`` in the folder of the run.
        accelerator: Lightning's name of where to compute.
        trust: whether checkpoints may hold more than tensors and plain values, which runs code that they name.
        **settings: arguments of :class:`~egcam_lightning.ExpectedGradCAMCallback`; those that say when a snapshot is
            due have no say here, and ``strict`` is true by default.

    Returns:
        The history, a snapshot a checkpoint.

    Raises:
        ValueError: for checkpoints that are none, unsafe to read, of another model, or of several runs; for data
            without validation images; for settings out of range.
        TypeError: for a setting that the callback does not have.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     replay(folder, LightningModule())
        Traceback (most recent call last):
        ...
        ValueError: ... holds no checkpoints (*.ckpt): name the folder that ModelCheckpoint wrote.

    """
    found = find_checkpoints(checkpoints, trust=trust)
    folder = Path(save_dir) if save_dir is not None else default_folder(found)
    return look_at(found, module, datamodule, folder, accelerator=accelerator, trust=trust, **settings).history


@dataclass(frozen=True, eq=False)
class Replayed:
    """A run that was replayed.

    Attributes:
        history: a snapshot a checkpoint.
        run_dir: the folder with its files.

    """

    history: History
    run_dir: Path

    @property
    def page(self) -> Path:
        """Its timeline."""
        return self.run_dir / "report.html"


def default_folder(found: Sequence[CheckpointFile]) -> Path:
    """Where the files of a replay go: ``replay`` in the folder of the run."""
    return run_folder(found[0].path) / "replay"


def look_at(
    moments: Sequence[Moment],
    module: LightningModule,
    datamodule: LightningDataModule | None,
    folder: Path,
    *,
    accelerator: str = "auto",
    trust: bool = False,
    estimates: bool = False,
    **settings: Any,
) -> Replayed:
    """Look at a module with the weights of one moment after the other.

    Args:
        moments: whose weights; at least one.
        module: the module.
        datamodule: its data.
        folder: where files go.
        accelerator: Lightning's name of where to compute.
        trust: whether checkpoints may run code.
        estimates: whether the audit says how faithful maps are, with intervals.
        **settings: arguments of the callback.

    """
    bound = inspect.signature(ExpectedGradCAMCallback).bind(**{"strict": True, **settings, **_SCHEDULE})
    bound.apply_defaults()
    config = CallbackConfig.from_arguments({**bound.arguments, "save_dir": str(folder)})
    progress = Progress(folder, config, moments, (module, datamodule))
    if progress.finished:
        rank_zero_info(f"All is there from before; remove {progress.run_dir} to do it anew.")
        return Replayed(History.load(progress.run_dir), progress.run_dir)
    player = _Player(moments, config, progress, trust=trust, estimates=estimates)
    with _untrained(module):
        Trainer(
            accelerator=accelerator,
            devices=1,
            max_epochs=1,
            callbacks=[player],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=folder,
        ).fit(module, datamodule=datamodule)
    if player.interrupted:
        raise KeyboardInterrupt
    return Replayed(progress.run_state.history, progress.run_dir)


class _Player(Callback):
    """Sits where the callback sits in a fit, and looks at one checkpoint after the other before a step is made."""

    def __init__(
        self, moments: Sequence[Moment], config: CallbackConfig, progress: Progress, *, trust: bool, estimates: bool
    ) -> None:
        self._moments, self._config, self._progress = moments, config, progress
        self._trust, self._estimates = trust, estimates
        self.interrupted = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = True
        lazy = uninitialised(pl_module) is not None
        before = {} if lazy else {key: value.clone() for key, value in pl_module.state_dict().items()}
        try:
            failsafe = Failsafe(self._config.strict)
            self._play(Fit(trainer, pl_module, self._config, self._progress.run_state, failsafe, self._estimates))
        except KeyboardInterrupt:  # which Lightning makes an end of the process
            self.interrupted = True
        finally:
            if before:
                pl_module.load_state_dict(before)

    def _play(self, fit: Fit) -> None:
        trainer, module, progress = fit.trainer, fit.module, self._progress
        with validation_data(trainer, module):
            if validation_source(trainer) is None and not is_batch(self._config.probe):
                raise ValueError(
                    f"{type(getattr(trainer, 'datamodule', None) or module).__name__} has no validation data for "
                    f"{type(module).__name__}, whose images would be explained. Give it a `val_dataloader`, and the "
                    "module a `validation_step`; or pass a batch as `probe`."
                )
            first = partial(_batches, validation_source(trainer), fit, validating=True)
        self._moments[0].load_into(module, trust=self._trust)  # by whose weights the layer is found
        session = Session(fit, time.perf_counter())
        if not session.begun:
            session.begin_with(next(first()))
        if fit.run_state.baselines.images is None:  # data without an index: a sample of those that come first
            for index, batch in enumerate(islice(_batches(trainer.train_dataloader, fit, validating=False), _STREAMED)):
                session.sample(batch, index)
            fit.run_state.baselines.end_epoch()
        assert session.run_dir is not None
        progress.run_dir = session.run_dir
        start = len(fit.run_state.history)  # a past that does not fit has been let go
        for one in tqdm(self._moments[start:], "checkpoints", initial=start, total=len(self._moments)):
            one.load_into(module, trust=self._trust)
            session.snapshot("epoch" if one.global_step else "start", (one.epoch, one.step))
            progress.save(one)
        session.conclude()
        progress.save()


def _batches(loaders: Any, fit: Fit, *, validating: bool) -> Iterator[Any]:
    """The batches of a loader, or of loaders that make each batch together, as the Trainer brings them to the model."""
    for batch, _, _ in iter(CombinedLoader(loaders, "max_size_cycle")):
        yield to_model(fit.trainer, fit.module, batch, validating=validating)


@contextmanager
def _untrained(module: LightningModule) -> Iterator[None]:
    """Have a fit make no optimizer, no callbacks of the module's, and none of its hooks of training believe in any."""
    stand_ins = {
        "configure_optimizers": lambda: None,
        "configure_callbacks": lambda: [],
        "training_step": lambda batch, batch_idx: None,
        **dict.fromkeys(("on_train_start", "on_train_end", "on_fit_end"), lambda: None),
    }
    table = vars(module)
    before = {name: table[name] for name in stand_ins if name in table}
    table.update(stand_ins)
    try:
        with warnings.catch_warnings():
            # A module that is not trained needs no optimizer, and may be in any mode.
            warnings.filterwarnings("ignore", "`LightningModule.configure_optimizers` returned `None`")
            warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode at the start of training")
            yield
    finally:
        for name in stand_ins:
            del table[name]
        table.update(before)


def run_folder(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint is of.

    Example:
        >>> run_folder(Path("logs/version_0/checkpoints/last.ckpt")).as_posix()
        'logs/version_0'

    """
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
