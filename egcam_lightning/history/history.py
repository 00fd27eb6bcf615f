"""All snapshots of a run, in memory or read from its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

from egcam_lightning.findings.records import AuditRecord
from egcam_lightning.history.audit_file import read_audit
from egcam_lightning.history.folder import read_folder
from egcam_lightning.history.records import ProbeImages, Snapshot
from egcam_lightning.notebook import SHOWN, heat, plot_lines, strip

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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

    def plot(self, *keys: str, ax: Axes | None = None) -> tuple[Figure, Axes]:
        """Draw values over steps with matplotlib: ``history.plot("drift/previous", "drift/noise_floor")``.

        Args:
            *keys: the values, a line each.
            ax: where to draw; ``None`` for a new figure.

        Returns:
            The figure and its axes, as the ``plot`` of torchmetrics does.

        Raises:
            ValueError: for a value that no snapshot has; names the close ones.

        Example:
            >>> import torch
            >>> History(ProbeImages(torch.zeros(2, 8, 8, 3, dtype=torch.uint8))).plot("consensus")
            Traceback (most recent call last):
            ...
            ValueError: There is no value 'consensus' to plot. There are: none.

        """
        return plot_lines(self.rows(), keys, ax)

    def _repr_html_(self) -> str:
        """A strip of the last snapshot, for notebooks."""
        count = len(self.snapshots)
        if not count:
            return strip("No snapshot yet", (), ())
        last = self.snapshots[-1]
        title = (
            f"{count} snapshots of {len(last.target)} images at layer {last.layer!r}; the last, at step {last.step}:"
        )
        shown = heat(last.attribution[:SHOWN], self.probe.images[:SHOWN])
        names = [self.probe.name(int(target)) for target in last.target]
        return strip(title, shown, names, () if self.audit is None else (self.audit.sentence,))
