"""Pictures in TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from egcam_lightning.history.history import History
    from egcam_lightning.history.records import Snapshot
    from egcam_lightning.pictures.draw import Pictures


class TensorBoardSink:
    """One captioned sheet a snapshot under ``egcam/panels``, with TensorBoard's own slider over the steps.

    TensorBoard shows no captions and keeps ten steps a tag, so that one sheet with its captions drawn in says more
    than a tag an image. It shows no pages either.

    Args:
        logger: a ``TensorBoardLogger``.
        run_dir: unused.
        prefix: the prefix of the keys.

    """

    def __init__(self, logger: Any, run_dir: Path, prefix: str) -> None:
        self.logger = logger
        self.prefix = prefix

    def log_snapshot(self, snapshot: Snapshot, history: History, pictures: Pictures) -> None:
        """Write the sheet of all panels."""
        self.logger.experiment.add_image(f"{self.prefix}/panels", pictures.sheet(), snapshot.step, dataformats="HWC")

    def log_page(self, path: Path) -> None:
        """Nothing to do: the page lies beside the run."""
