"""All snapshots of a run, in memory or read from its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

from egcam_lightning.findings.records import AuditRecord
from egcam_lightning.history.audit_file import read_audit
from egcam_lightning.history.folder import read_folder
from egcam_lightning.history.records import ProbeImages, Snapshot


@dataclass(frozen=True, eq=False)
class History:
    """Every snapshot of a run, oldest first, and the images they look at.

    Attributes:
        probe: the images, for display.
        snapshots: the snapshots so far.
        prefix: the prefix under which values were logged.
        run: what the run is known by; a resumed one keeps it.
        audit: the last audit: what patches of the validation images do to others; ``None`` where there was none.

    """

    probe: ProbeImages
    snapshots: Sequence[Snapshot] = ()
    prefix: str = "egcam"
    run: str = ""
    audit: AuditRecord | None = None

    def __len__(self) -> int:
        return len(self.snapshots)

    def __getitem__(self, index: int) -> Snapshot:
        return self.snapshots[index]

    @classmethod
    def load(cls, run_dir: str | PathLike[str]) -> History:
        """Read the history that a run left in ``run_dir`` (the folder that holds ``history.jsonl``).

        Raises:
            ValueError: where the folder holds no history, or a damaged or foreign one.

        """
        return cls(*read_folder(run_dir), read_audit(run_dir))

    def rows(self) -> list[dict[str, Any]]:
        """One flat dictionary a snapshot, ready for ``pandas.DataFrame(history.rows())``."""
        return [{"epoch": s.epoch, "step": s.step, "when": s.when, **s.metrics} for s in self.snapshots]
