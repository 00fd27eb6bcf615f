"""Pictures in Comet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from egcam_lightning.history.history import History
    from egcam_lightning.history.records import Snapshot
    from egcam_lightning.pictures.draw import Pictures


class CometSink:
    """One captioned sheet a snapshot under ``egcam/panels``, with a slider over the steps, and the page as asset.

    Args:
        logger: a ``CometLogger``.
        run_dir: unused.
        prefix: the prefix of the keys.

    """

    def __init__(self, logger: Any, run_dir: Path, prefix: str) -> None:
        self.logger = logger
        self.prefix = prefix

    def log_snapshot(self, snapshot: Snapshot, history: History, pictures: Pictures) -> None:
        """Send the sheet of all panels."""
        from PIL import Image

        # Not as an array: Comet would guess the range of its values, and rescale them.
        sheet = Image.fromarray(pictures.sheet())
        self.logger.experiment.log_image(sheet, name=f"{self.prefix}/panels", step=snapshot.step)

    def log_page(self, path: Path) -> None:
        """Keep the timeline page with the experiment's assets, the newest only."""
        self.logger.experiment.log_asset(str(path), file_name=f"{self.prefix}/timeline.html", overwrite=True)
