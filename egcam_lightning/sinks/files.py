"""PNG files beside the run, for loggers that show no pictures."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from egcam_lightning.history.files import replace_file

if TYPE_CHECKING:
    from egcam_lightning.history.history import History
    from egcam_lightning.history.records import Snapshot
    from egcam_lightning.pictures.draw import Pictures


class FileSink:
    """One PNG file a snapshot, ``panels/epoch=0003-step=000120.png`` in the run folder.

    Args:
        logger: unused; files need no logger.
        run_dir: the folder of the run.
        prefix: unused; the run folder has it.

    """

    def __init__(self, logger: Any, run_dir: Path, prefix: str) -> None:
        self.folder = Path(run_dir) / "panels"

    def log_snapshot(self, snapshot: Snapshot, history: History, pictures: Pictures) -> None:
        """Write the sheet of all panels."""
        from PIL import Image

        buffer = BytesIO()
        # Training waits meanwhile: a tenth larger, and more than twice as fast.
        Image.fromarray(pictures.sheet()).save(buffer, "PNG", compress_level=1)
        replace_file(self.folder / f"{snapshot.name}.png", buffer.getvalue())

    def log_page(self, path: Path) -> None:
        """Nothing to do: the page is a file already."""
