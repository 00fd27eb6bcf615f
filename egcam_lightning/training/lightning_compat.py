"""Every private touch of Lightning, each with its reason: what a new release may break, it breaks here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.trainer.states import RunningStage

from egcam_lightning.data.loaders import first_loader
from egcam_lightning.explain.isolation import isolated


@contextmanager
def validation_data(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Have the validation data at hand inside, also where the Trainer sets them up later.

    It then does so as if they had never been there: making loaders may draw from the global generators. Every process
    waits for the others on the way in.
    """
    if trainer.val_dataloaders is not None or not trainer.enable_validation:
        yield
        return
    loop, stage = trainer.fit_loop.epoch_loop.val_loop, trainer.state.stage
    before = dict(vars(loop))
    try:
        trainer.state.stage = RunningStage.VALIDATING
        try:
            with isolated(pl_module):
                loop.setup_data()
        finally:
            trainer.state.stage = stage
        yield
    finally:
        vars(loop).update(before)


def validation_source(trainer: Trainer) -> Any:
    """What makes validation batches: the first of several loaders, or loaders that make each batch together."""
    loaders = trainer.val_dataloaders
    combined = trainer.fit_loop.epoch_loop.val_loop._combined_loader
    return loaders if combined is not None and combined._mode != "sequential" else first_loader(loaders)


def to_model(trainer: Trainer, pl_module: LightningModule, batch: Any, *, validating: bool) -> Any:
    """Bring a batch to the model as the Trainer's own loops do.

    Args:
        trainer: the Trainer.
        pl_module: its module.
        batch: as a loader made it.
        validating: whether it is to arrive as validation batches do; otherwise as training batches do. The usual
            ``on_after_batch_transfer`` asks the Trainer which, to augment the one and not the other.

    """
    stage = trainer.state.stage
    trainer.state.stage = RunningStage.VALIDATING if validating else RunningStage.TRAINING
    try:
        batch = trainer.precision_plugin.convert_input(batch)
        batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
        return trainer.strategy.batch_to_device(batch, dataloader_idx=0)
    finally:
        trainer.state.stage = stage


def logger_step(trainer: Trainer, kind: str) -> int:
    """The step under which Lightning logs at this moment."""
    step = int(trainer.fit_loop.epoch_loop._batches_that_stepped)
    # At the end of an epoch without validation Lightning logs one step back.
    return max(step - 1, 0) if kind == "epoch" and not trainer.validating else step


@contextmanager
def unheard(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Let what a module logs inside reach nobody: neither the Trainer's results nor its loggers.

    A ``forward`` that logs would otherwise add what it finds in our images to the user's running means.

    Args:
        trainer: the Trainer.
        pl_module: its module; modules of Lightning inside it fall silent too.

    """

    def restore(table: dict[str, Any], before: dict[str, Any]) -> None:
        for name in ("log", "log_dict"):
            table.pop(name, None)
        table.update(before)

    with ExitStack() as stack:
        for module in pl_module.modules():
            if isinstance(module, LightningModule):
                table = vars(module)
                stack.callback(restore, table, {name: table[name] for name in ("log", "log_dict") if name in table})
                table.update(log=_nothing, log_dict=_nothing)
        stack.callback(setattr, trainer, "loggers", trainer.loggers)
        trainer.loggers = [DummyLogger() for _ in trainer.loggers]
        yield


def _nothing(*_: Any, **__: Any) -> None:
    """Log nothing."""


def validation_follows(trainer: Trainer) -> bool:
    """Whether the Trainer validates behind the batch that ends now.

    Asked of the loop itself, which alone knows of ``val_check_interval`` and of data without an end.
    """
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return bool(loop.epoch_loop._should_check_val_fx(loop._data_fetcher))


def print_in_progress_bar(trainer: Trainer, message: str) -> None:
    """Print a line that leaves the progress bar whole, where there is one."""
    bar = trainer.progress_bar_callback
    if bar is not None and getattr(bar, "is_enabled", True):
        bar.print(message)
