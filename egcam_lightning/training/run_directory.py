"""Where the files of a run go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch import Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn

from egcam_lightning.config import CallbackConfig
from egcam_lightning.history.folder import run_of
from egcam_lightning.history.history import History
from egcam_lightning.sinks.publisher import Publisher
from egcam_lightning.training.failsafe import Failsafe

if TYPE_CHECKING:
    pass


def run_directory(trainer: Trainer, save_dir: str | None, prefix: str, run: str = "") -> Path:
    """The folder of a run: below ``save_dir``, else where ModelCheckpoint would write, then the prefix.

    A resumed run goes on where its history is. What holds another run's is left as it is: in the manner of Lightning,
    the next one goes to a ``version_k`` beside it.

    Args:
        trainer: the Trainer.
        save_dir: the folder that the user asked for.
        prefix: the prefix of everything logged; instances share a folder by it.
        run: what the run is known by.

    Returns:
        The folder; it need not exist.

    """
    root, first = _root(trainer, save_dir)
    versions = {int(path.name[8:]): path / prefix for path in root.glob("version_*") if path.name[8:].isdecimal()}
    places = [*([first / prefix] if first else []), *(versions[k] for k in sorted(versions))]
    holders = {place: run_of(place) for place in places}
    going_on = [place for place, holder in holders.items() if run and holder == run]
    if going_on:
        return going_on[-1]
    if first and holders[first / prefix] is None:
        return first / prefix
    folder = root / f"version_{max(versions, default=0 if first else -1) + 1}" / prefix
    if versions:
        newest = versions[max(versions)]  # where an instance of this fit may have begun; without a history, not ours
        if holders[newest] is None and any(newest.parent.glob("*/history.jsonl")):
            folder = newest
    if first:
        rank_zero_warn(
            f"{first / prefix} holds the history of another run, which is left as it is: this one's goes to {folder}."
        )
    return folder


def _root(trainer: Trainer, save_dir: str | None) -> tuple[Path, Path | None]:
    """Where the versions of a run folder lie, and the folder that comes before them, where there is one."""
    if save_dir is not None:
        return Path(save_dir), Path(save_dir)
    if trainer.loggers:
        logger = trainer.loggers[0]
        root = Path(logger.save_dir if logger.save_dir is not None else trainer.default_root_dir)
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        return root / str(logger.name) / version, root / str(logger.name) / version
    return Path(trainer.default_root_dir), None


def make_publisher(trainer: Trainer, config: CallbackConfig, history: History, failsafe: Failsafe) -> Publisher:
    """What shows the snapshots of a run: in its folder, and in the Trainer's loggers."""
    return Publisher(
        run_directory(trainer, config.save_dir, history.prefix, history.run),
        trainer.loggers,
        history.prefix,
        failsafe,
        alerts=config.alerts,
        log_page_every=config.log_page_every,
        colormap=config.colormap,
    )
