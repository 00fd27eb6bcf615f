"""The Lightning callback: when a snapshot is taken, and what of it outlives the process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn
from torchmetrics import Metric

from egcam_lightning.config import CallbackConfig
from egcam_lightning.data.probe import Probe
from egcam_lightning.explain import Perturbation
from egcam_lightning.explain.perturbation import Weighting
from egcam_lightning.explain.scores import ScoreName
from egcam_lightning.findings.records import Finding
from egcam_lightning.history.history import History
from egcam_lightning.training.failsafe import Failsafe
from egcam_lightning.training.fit import Fit
from egcam_lightning.training.monitors import Monitors
from egcam_lightning.training.run_state import new_run_state
from egcam_lightning.training.session import Session
from egcam_lightning.training.strategies import check_strategy


class ExpectedGradCAMCallback(Callback):
    """Watch what a model looks at while it learns.

    At every validation it explains a fixed set of validation images by Expected Grad-CAM (Buono et al., TMLR 2026),
    with training images as baselines, and logs pictures, faithfulness metrics and the drift of the explanations
    against the noise of their own estimation. Training is bit-identical with and without it.

    Args:
        target_layer: ``"auto"``, a module's name, or a module, see :class:`ExpectedGradCAM`; several for the mean of
            their maps (for a timeline each, take an instance a layer, with a ``log_prefix`` of its own).
        num_images: images of the probe, evenly spaced among what the first validation loader delivers.
        audit_images: validation images whose patches are pasted into others at the end of the fit, balanced over
            classes; what they do are the :attr:`findings`. Fewer (64 at least) where ``max_overhead`` asks for it.
        audit_every: audit at every so many snapshots as well, so that ``capture/excess`` can be monitored.
        num_baselines: training images kept as baselines, a uniform sample of the first epoch.
        num_samples: draws per image; a multiple of ``num_baselines`` is best.
        every_n_epochs: take a snapshot at the validations of every n-th epoch; ``None`` for none of them. Without
            validation it is taken at the end of the epoch.
        every_n_train_steps: take one every n optimizer steps as well.
        log_at_start: take one before training.
        target: the explained class: ``"label"`` (the mean over an image's labels where there are several; the
            prediction where there are none), ``"predicted"`` (at the first snapshot after an epoch), ``"runner_up"``
            (the wrong class that the model then prefers), a class for all images, or a callable from (output, labels)
            to ``(N,)`` classes or ``(N, classes)`` bool, asked at that same snapshot. The class of an image then stays
            the same for the whole run.
        metrics: ``"default"`` (about 36 passes per image), names, instances of ``torchmetrics.Metric``, or ``()``; a
            mapping or a ``MetricCollection`` gives them keys of your own, as two of one class need.
        probe: what to explain instead: a batch, as the validation loader would make it; indices of the validation
            data set; or ``"balanced"``, ``num_images`` of it with every class as often as any other.
        class_names: names of the classes; ``None``: those of the data set, where it has them.
        mean: mean that images were normalised with, for display; ``None``: that of the data set's ``Normalize``.
        std: the standard deviation.
        input_key: key or position of the images in a batch, with dots to lead deeper (``"views.0"``); ``None`` finds
            the usual ones.
        output_key: key, attribute or position of the logits in the model's output, with dots to lead deeper; ``None``
            finds the usual ones.
        forward_fn: ``forward_fn(module, images, *others)`` that calls the model; ``None`` for
            ``module(images, *others)``.
        additional_keys: keys or positions, in a batch, of what the model takes besides the images: tensors with a row
            an image, which follow the images in this order and are held fixed.
        label_key: key or position of the labels in a batch; ``None`` finds the usual names, else the first integers
            behind the images, and says so where others would do as well.
        masks_key: key or position of object masks in a validation batch; they bring the metrics that need them.
        max_overhead: largest share of the fit's time that snapshots may take; past it they are taken less often.
            ``None`` for any.
        seed: seed of the draws and of the reservoir.
        save_dir: folder for files; ``None`` for the folder that ModelCheckpoint would use. Where it holds another run's
            history, a ``version_k`` below it. Maps are there in full. Memory and checkpoints hold at most 4 kB a
            snapshot of 16 images, with averages over at most 64 cells for maps, and in full those of two snapshots:
            the previous one, and the one that drift is measured from.
        log_prefix: prefix of everything logged.
        alerts: limits by key, such as ``{"consensus": 0.95, "drift/previous": 0.5}``; a logger that knows alerts (W&B)
            sends one when a value rises above its limit.
        log_page_every: show the timeline page in the loggers at every so many snapshots, as well as at the end.
        colormap: matplotlib's name of the colours of the heat; the page has a choice of its own.
        perturbation: the perturbation distribution; ``None`` for Expected Grad-CAM's.
        weighting: such as ``"channel"`` or ``"layercam"``, see :class:`Perturbation`; ``None`` for its own.
        score: what is explained, see :class:`ExpectedGradCAM`.
        reshape_transform: from the layer's activation to ``(N, K, h, w)``, where its layout cannot be inferred.
        chunk_size: points that go through the model at once.
        baseline_samples: stop sampling baselines after so many training images; ``None``: after the first epoch, or
            10,000 images where the training data have no end.
        save_baselines: whether checkpoints hold the baselines; without them a resumed run samples them anew.
        strict: raise whatever goes wrong, instead of warning and going on with the training.

    Raises:
        ValueError: for arguments out of range.
        MisconfigurationException: in ``setup``, for a strategy that it does not run under, and where EarlyStopping,
            ModelCheckpoint or a scheduler monitors a value that there will never be.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from egcam_lightning import ExpectedGradCAMCallback
        >>> callback = ExpectedGradCAMCallback(num_images=8)
        >>> trainer = Trainer(callbacks=[callback], logger=False, enable_checkpointing=False)
        >>> len(callback.history)
        0

    """

    def __init__(
        self,
        target_layer: str | nn.Module | Sequence[str] = "auto",
        *,
        num_images: int = 16,
        num_baselines: int = 8,
        audit_images: int = 256,
        audit_every: int | None = None,
        num_samples: int = 32,
        every_n_epochs: int | None = 1,
        every_n_train_steps: int | None = None,
        log_at_start: bool = True,
        target: Literal["label", "predicted", "runner_up"] | int | Callable[..., Any] = "label",
        metrics: str | Mapping[str, str | Metric] | Iterable[str | Metric] = "default",
        probe: Any = None,
        class_names: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        input_key: str | int | None = None,
        output_key: str | int | None = None,
        forward_fn: Callable[..., Any] | None = None,
        additional_keys: Sequence[str | int] = (),
        label_key: str | int | None = None,
        masks_key: str | int | None = None,
        max_overhead: float | None = 0.05,
        seed: int = 0,
        save_dir: str | None = None,
        log_prefix: str = "egcam",
        alerts: dict[str, float] | None = None,
        log_page_every: int | None = None,
        colormap: str = "inferno",
        perturbation: Perturbation | None = None,
        weighting: Weighting | None = None,
        score: ScoreName | Callable[..., Any] = "logit",
        reshape_transform: Callable[..., Any] | None = None,
        chunk_size: int | None = None,
        baseline_samples: int | None = None,
        save_baselines: bool = True,
        strict: bool = False,
    ) -> None:
        arguments = dict(locals())
        super().__init__()
        self._config = CallbackConfig.from_arguments(arguments)
        self._run_state = new_run_state(self._config)
        self._resumed = False  # whether the record is a checkpoint's
        self._failsafe = Failsafe(strict)
        self._session: Session | None = None
        self._monitors: Monitors | None = None
        self._run_dir: Path | None = None
        self._started = 0.0

    @property
    def history(self) -> History:
        """The snapshots so far, oldest first."""
        return self._run_state.history

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the last audit found: patches that alone turn images of other classes into theirs. Empty for none.

        What was tested is ``history.audit``.
        """
        audit = self.history.audit
        return () if audit is None else audit.findings

    @property
    def probe(self) -> Probe | None:
        """The images that are explained: ``probe.images`` is ``(N, C, H, W)`` on the CPU, as the model takes them.

        ``None`` until they are chosen.
        """
        return self._run_state.probe

    @property
    def baselines(self) -> Tensor | None:
        """The training images that explanations are relative to, ``(R, C, H, W)`` on the CPU; ``None`` without any."""
        return self._run_state.baselines.images

    @property
    def overhead_seconds(self) -> float:
        """Seconds that explaining, drawing and logging have taken so far, before a resume as well."""
        return self._run_state.schedule.overhead_seconds

    @property
    def run_dir(self) -> Path | None:
        """The folder with the last fit's history, pictures and page; ``None`` before, and beyond the first process."""
        return self._run_dir if self._session is None else self._session.run_dir

    @property
    def state_key(self) -> str:
        """Instances with different prefixes keep their states apart."""
        return self._generate_state_key(log_prefix=self._config.log_prefix)

    # ---- the Trainer's hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work before anything has started."""
        if stage != "fit":
            return
        self._started = time.perf_counter()
        self._resumed = False
        check_strategy(trainer.strategy)
        prefix = self._config.log_prefix
        callbacks: list[Any] = getattr(trainer, "callbacks", [])
        twins = [c for c in callbacks if isinstance(c, ExpectedGradCAMCallback) and c is not self]
        prefixes = [twin._config.log_prefix for twin in twins]
        if prefix in prefixes:
            raise MisconfigurationException(
                f"Two ExpectedGradCAMCallbacks log under the prefix {prefix!r}. Give one of them another `log_prefix`."
            )
        self._monitors = Monitors(trainer, self._config, prefixes)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the images and find the layer; take the snapshot before training."""
        if getattr(trainer, "barebones", False):
            rank_zero_info("ExpectedGradCAMCallback takes no snapshots with `barebones=True`.")
            return
        if trainer.global_step == 0 and not self._resumed:  # a new training with an instance that has seen another
            self._run_state, self._failsafe = new_run_state(self._config), Failsafe(self._config.strict)
        fit = Fit(trainer, pl_module, self._config, self._run_state, self._failsafe)
        self._session = Session(fit, self._started, self._monitors)
        begins = not len(self.history) and trainer.global_step == 0
        self._session.start(at_start=self._config.log_at_start and begins)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Let training images pass by the reservoir."""
        if self._session is not None:
            self._session.sample(batch, batch_idx)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Close the reservoir with the epoch; take a snapshot every so many steps."""
        if self._session is not None:
            self._session.batch_ended(batch_idx)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Expect a batch."""
        if self._session is not None:
            self._session.validation_began()

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Take a snapshot at the first batch, when averaged weights are in and metrics can still be logged."""
        if self._session is not None:
            self._session.validated(batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take part in the snapshot of the other processes, where this one has no batch."""
        if self._session is not None:
            self._session.validated(None)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the epoch's snapshot where there is no validation."""
        if self._session is not None:
            self._session.epoch_ended()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Audit the trained model, and build the page a last time."""
        if self._session is not None:
            self._session.conclude()
        if self._monitors is not None:
            self._monitors.conclude()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave a page of what there is when training ends early; nothing is torn down then."""
        if self._session is not None:
            self._session.finish()
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the model, the loggers and the clock."""
        self._release()

    def _release(self) -> None:
        if self._monitors is not None:
            self._monitors.end()
            self._monitors = None
        if self._session is not None:
            self._run_state.schedule.elapsed_before += self._session.elapsed
            self._run_dir = self._session.run_dir
            self._session = None

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed fit goes on from, in plain tensors and numbers."""
        elapsed = 0.0 if self._session is None else self._session.elapsed
        return self._run_state.state_dict(elapsed, save_baselines=self._config.save_baselines)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint; a state that does not fit is told of, and the run starts afresh."""
        # Nothing is left of an earlier training, whatever the state is like.
        self._run_state = new_run_state(self._config)
        self._run_state.load_state_dict(state_dict)
        self._resumed = True
