"""Pictures in MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from egcam_lightning.history.history import History
    from egcam_lightning.history.records import Snapshot
    from egcam_lightning.pictures.draw import Pictures


class MLflowSink:
    """One captioned sheet a snapshot under ``egcam/panels``, with a slider over the steps, and the page as artifact.

    Args:
        logger: an ``MLFlowLogger``.
        run_dir: unused.
        prefix: the prefix of the keys.

    """

    def __init__(self, logger: Any, run_dir: Path, prefix: str) -> None:
        self.logger = logger
        self.prefix = prefix

    def log_snapshot(self, snapshot: Snapshot, history: History, pictures: Pictures) -> None:
        """Write the sheet of all panels."""
        self.logger.experiment.log_image(
            self.logger.run_id, pictures.sheet(), key=f"{self.prefix}/panels", step=snapshot.step
        )

    def log_page(self, path: Path) -> None:
        """Keep the timeline page with the run's artifacts, where MLflow shows it."""
        self.logger.experiment.log_artifact(self.logger.run_id, str(path), self.prefix)
