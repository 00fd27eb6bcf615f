"""How the values of a snapshot reach the loggers, and whoever monitors them; and how nothing else does."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from lightning.pytorch import LightningModule, Trainer

from egcam_lightning.history.records import Occasion
from egcam_lightning.training.failsafe import Failsafe


def logged_key(prefix: str, key: str) -> str:
    """The key under which loggers know a number.

    Example:
        >>> logged_key("egcam", "drift/previous")
        'egcam/drift/previous'

    """
    return f"{prefix}/{key}"


def log(
    numbers: Mapping[str, float],
    prefix: str,
    when: Occasion,
    trainer: Trainer,
    pl_module: LightningModule,
    failsafe: Failsafe,
    *,
    monitored: bool = True,
) -> set[str]:
    """Log what a snapshot gave.

    Snapshots of an epoch go through ``pl_module.log``, so that EarlyStopping and ModelCheckpoint can monitor them. The
    others go to the loggers themselves: through ``pl_module.log`` they would reach none, or overwrite the epoch's.

    Args:
        numbers: by key, without the prefix; the same keys in every process.
        prefix: what all keys begin with.
        when: the occasion.
        trainer: the Trainer.
        pl_module: its module.
        failsafe: where failures go; one logger that fails silences no other.
        monitored: whether the Trainer is where it takes the values of this epoch.

    Returns:
        The keys, with the prefix, that can be monitored from now on.

    """
    values = {logged_key(prefix, key): number for key, number in numbers.items()}
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
        failsafe.guard("logging", log_epoch)
        return taken
    for logger in trainer.loggers:
        task = partial(logger.log_metrics, {**values, "epoch": float(when.epoch)}, step=when.step)
        failsafe.guard(f"logging ({type(logger).__name__})", task)
    return taken
