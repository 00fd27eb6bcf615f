"""How the values of a snapshot reach the loggers, and whoever monitors them; and how nothing else does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger

from egcam_lightning.faults import Faults
from egcam_lightning.look import When


def log(
    values: Mapping[str, float],
    when: When,
    trainer: Trainer,
    pl_module: LightningModule,
    faults: Faults,
    *,
    monitored: bool = True,
) -> set[str]:
    """Log what a snapshot gave.

    Snapshots of an epoch go through ``pl_module.log``, so that EarlyStopping and ModelCheckpoint can monitor them. The
    others go to the loggers themselves: through ``pl_module.log`` they would reach none, or overwrite the epoch's.

    Args:
        values: by key; the same keys in every process.
        when: the occasion.
        trainer: the Trainer.
        pl_module: its module.
        faults: where failures go; one logger that fails silences no other.
        monitored: whether the Trainer is where it takes the values of this epoch.

    Returns:
        The keys that can be monitored from now on.

    """
    taken: set[str] = set()

    def log_epoch() -> None:
        for key, value in values.items():
            pl_module.log(
                key,
                value,
                on_step=False,
                on_epoch=True,
                batch_size=1,
                add_dataloader_idx=False,
                sync_dist=trainer.world_size > 1,
            )
            taken.add(key)

    if when.kind == "epoch" and monitored:
        faults.guard("logging", log_epoch)
        return taken
    for logger in trainer.loggers:
        task = partial(logger.log_metrics, {**values, "epoch": float(when.epoch)}, step=when.step)
        faults.guard(f"logging ({type(logger).__name__})", task)
    return taken


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
