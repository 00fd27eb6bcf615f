"""Everything a snapshot is shown by: the run folder, the pictures in the loggers, and the page."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from egcam_lightning.findings.records import AuditRecord
from egcam_lightning.history.audit_file import write_audit
from egcam_lightning.history.folder import RunFolder
from egcam_lightning.history.history import History
from egcam_lightning.history.records import Snapshot
from egcam_lightning.sinks import Sink, find_sinks

if TYPE_CHECKING:
    from egcam_lightning.pictures.draw import Pictures
    from egcam_lightning.training.failsafe import Failsafe

_PAGE_SECONDS = 5.0  # the page is not rebuilt more often than this, so that it can be watched but costs little


class Publisher:
    """Shows snapshots: lives in the first process only.

    Args:
        folder: the run folder.
        loggers: the Trainer's loggers.
        prefix: the prefix of everything logged.
        failsafe: what failures are handed to; one destination that fails stops no other.
        alerts: limits by key, above which sinks that know alerts send one.
        log_page_every: show the page in the loggers at every so many snapshots, not at the end alone.
        colormap: matplotlib's name of the colours of the heat.

    """

    def __init__(
        self,
        folder: Path,
        loggers: list[Any],
        prefix: str,
        failsafe: Failsafe,
        alerts: Mapping[str, float] | None = None,
        log_page_every: int | None = None,
        colormap: str = "inferno",
    ) -> None:
        self._colormap = colormap
        self._alerts = alerts or {}
        self._log_page_every = log_page_every
        self._guard, self._inform = failsafe.guard, failsafe.inform
        self._folder = RunFolder(folder)
        self._opened = False
        self._page_due = 1
        self._page_time = -math.inf
        self._find_sinks = partial(find_sinks, loggers, folder, prefix)
        self._sinks: list[Sink] = []

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self._folder.path

    @property
    def page(self) -> Path:
        """Where the timeline page is written."""
        return self._folder.path / "report.html"

    def add(self, snapshot: Snapshot, history: History, past: Sequence[Snapshot]) -> None:
        """Write and show a snapshot, the last one of ``history``.

        Args:
            snapshot: the snapshot, with all of its maps.
            history: the history with it.
            past: the snapshots before it, as they were before it was added: with what memory held of them then.

        """
        self._guard("writing the history", lambda: self._write(snapshot, history, past))
        pictures = self._guard("drawing the pictures", lambda: self._draw(snapshot, history))
        self._sinks = self._sinks or self._guard("finding where pictures go", self._find_sinks) or []
        if pictures is not None:
            for sink in self._sinks:
                task = f"showing pictures ({type(sink).__name__})"
                self._guard(task, partial(sink.log_snapshot, snapshot, history, pictures))
        self.alert(history, snapshot.metrics, past[-1].metrics if past else {})
        if self._log_page_every is not None and len(history) % self._log_page_every == 0:
            self.finish(history)
        # At growing intervals, so that a run of n snapshots does not cost n^2.
        if len(history) >= self._page_due and time.monotonic() - self._page_time >= _PAGE_SECONDS:
            self._build_page(history)

    def finish(self, history: History) -> None:
        """Build the page, and show it."""
        if not len(history):
            return
        path = self._build_page(history)
        if path is not None:
            self._inform(f"The page of this run is {path}")
            for sink in self._sinks:
                self._guard(f"showing the page ({type(sink).__name__})", partial(sink.log_page, path))

    def _draw(self, snapshot: Snapshot, history: History) -> Pictures:
        from egcam_lightning.pictures.draw import draw

        return draw(snapshot, history.probe, colormap=self._colormap)

    def show_audit(self, record: AuditRecord) -> None:
        """Write an audit, and show it in the loggers that have a place for one."""
        self._guard("writing the audit", lambda: write_audit(self.folder, record))
        for sink in self._sinks:
            log_audit = getattr(sink, "log_audit", None)
            if log_audit is not None:
                self._guard(f"showing the audit ({type(sink).__name__})", partial(log_audit, record))

    def alert(self, history: History, now: Mapping[str, float], before: Mapping[str, float]) -> None:
        """Say so where a value has risen above its limit since the snapshot before."""
        for key, limit in self._alerts.items():
            if now.get(key, -math.inf) <= limit or before.get(key, -math.inf) > limit:
                continue
            title = f"{history.prefix}/{key} is above {limit:g}"
            text = f"It is {now[key]:.4g} at epoch {history[-1].epoch}, step {history[-1].step}."
            for sink in self._sinks:
                alert = getattr(sink, "alert", None)
                if alert is not None:
                    self._guard(f"sending an alert ({type(sink).__name__})", partial(alert, title, text))

    def _write(self, snapshot: Snapshot, history: History, past: Sequence[Snapshot]) -> None:
        if not self._opened:  # not before there is something to write: a run that fails at once leaves nothing
            self._folder.open(history.probe, history.prefix, past, history.run)
            write_audit(self.folder, history.audit)
        self._opened = False  # where the disk does not take it, the next snapshot brings all that is missing
        self._folder.append(snapshot)
        self._opened = True

    def _build_page(self, history: History) -> Path | None:
        def build() -> Path:
            from egcam_lightning.report import build_report

            return build_report(history, self.page, names=[self._folder.path.parent.name])

        self._page_due = math.ceil(len(history) * 1.25) + 1
        built: Path | None = self._guard("building the page", build)
        self._page_time = time.monotonic()
        return built
