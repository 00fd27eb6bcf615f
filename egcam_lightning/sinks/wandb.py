"""Pictures in Weights & Biases.

============================  =====================================================================================
key                           what it shows
============================  =====================================================================================
``egcam/panels``              a slider over the steps: picture, heat over it, signed map
``egcam/overlays``            the pictures with the heat as masks that can be switched on and off, level by level
``egcam/table``               a row per image and snapshot, to sort and group
``egcam/timeline``            the timeline page
============================  =====================================================================================
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from egcam_lightning.findings.kinds import SPREAD
from egcam_lightning.history.records import Snapshot
from egcam_lightning.pictures.draw import HEAT_LEVELS

if TYPE_CHECKING:
    from egcam_lightning.findings.records import AuditRecord
    from egcam_lightning.history.history import History
    from egcam_lightning.pictures.draw import Pictures

# A list of images under one key holds no more.
_MOST = 108

# Panels are exact. What else is sent of the same pictures need not be, and is a tenth of the size and time as JPEG.
_SMALL = "jpg"

COLUMNS = (
    "epoch",
    "step",
    "image",
    "picture",
    "overlay",
    "explained",
    "predicted",
    "label",
    "correct",
    *(name for name, declared in Snapshot.values_per_image().items() if declared.column),
)
"""The columns of the table; that of volumes ends with ``slice``, the one that is shown, counted from 1."""


class WandbSink:
    """Panels, overlays, a growing table, the page, and alerts.

    Everything goes through the logger, which puts the step where W&B has the x axis of Lightning's own values.

    Args:
        logger: a ``WandbLogger``.
        run_dir: unused.
        prefix: the prefix of the keys.

    Attributes:
        max_pictures: pictures are uploaded, and storage there is what people pay for, so that past this many in a
            run no more are sent, with one warning; numbers and the page, which holds every snapshot, go on. The
            default is enough for 300 snapshots of 16 images; ``WandbSink.max_pictures = None`` lifts it.

    """

    max_pictures: int | None = 20_000

    def __init__(self, logger: Any, run_dir: Path, prefix: str) -> None:
        self.logger = logger
        self.prefix = prefix
        self._table: Any = None
        self._step: int | None = None
        self._reported: set[str] = set()

    def log_snapshot(self, snapshot: Snapshot, history: History, pictures: Pictures) -> None:
        """Send panels under one key, overlays under a second, and new rows of the table."""
        import wandb

        self._step = snapshot.step
        count = min(len(pictures.panels), _MOST)
        if count < len(pictures.panels):
            self._warn(
                "a list",
                f"W&B shows {_MOST} images at most under one key, so that the first {count} of the "
                f"{len(pictures.panels)} that are explained are sent; numbers and the timeline page have them all. "
                f"To see every picture in W&B write num_images={_MOST} or less, or give several callbacks a share "
                "each, as indices in `probe`, and a `log_prefix`.",
            )
        # A panel, an overlay and two pictures in the table; the history counts the snapshots before a resume too.
        if self.max_pictures is not None and 4 * count * len(history) > self.max_pictures:
            self._warn(
                "a run",
                f"{self.max_pictures} pictures are the most that are sent to W&B in one run, and {len(history) - 1} "
                "snapshots came to that: no more pictures are sent; numbers and the timeline page go on. To send all, "
                "set egcam_lightning.sinks.wandb.WandbSink.max_pictures = None, or take snapshots less often.",
            )
            return
        captions = pictures.captions[:count]
        self.logger.log_image(
            f"{self.prefix}/panels", list(pictures.panels[:count]), step=snapshot.step, caption=captions
        )
        overlays = [
            wandb.Image(picture, caption=caption, masks=_masks(pictures, index), file_type=_SMALL)
            for index, (picture, caption) in enumerate(zip(pictures.pictures, captions, strict=False))
        ]
        columns = _columns(snapshot, history, pictures, count)
        # One table for the whole run: each call sends the rows that are new.
        if self._table is None:
            self._table = wandb.Table(columns=list(columns), log_mode="INCREMENTAL")
        for row in zip(*columns.values(), strict=True):
            self._table.add_data(*row)
        self.logger.log_metrics(
            {f"{self.prefix}/overlays": overlays, f"{self.prefix}/table": self._table}, step=snapshot.step
        )
        # The table keeps its rows, and with them every picture, for as long as the run lasts.
        for row in self._table.data:
            row.clear()

    def log_page(self, path: Path) -> None:
        """Send the timeline page."""
        import wandb

        self.logger.log_metrics({f"{self.prefix}/timeline": wandb.Html(str(path))}, step=self._step)

    def log_audit(self, record: AuditRecord) -> None:
        """Send a table of what patches do to other images: a row a class, with its strongest patches."""
        import wandb

        columns: list[str | int] = ["class", "finding", "capture", "at random", *SPREAD, "images", "patches"]
        table = wandb.Table(columns=list(columns))
        for row, one in zip(record.rows(), record.classes, strict=True):
            patches = [wandb.Image(patch.pixels.movedim(0, -1).numpy(), file_type=_SMALL) for patch in one.patches]
            shares = [row[key] for key in ("capture", "capture_control", *SPREAD)]
            table.add_data(row["class_name"], row["finding"], *shares, row["num_images"], patches)
        self.logger.log_metrics({f"{self.prefix}/findings": table}, step=self._step)

    def alert(self, title: str, text: str) -> None:
        """Send an alert to whoever follows the run.

        Args:
            title: what happened, in a few words.
            text: the values.

        """
        self.logger.experiment.alert(title=title, text=text)

    def _warn(self, kind: str, message: str) -> None:
        """Warn, once of each kind."""
        if kind not in self._reported:
            self._reported.add(kind)
            warnings.warn(message, stacklevel=3)


def _masks(pictures: Pictures, index: int) -> dict[str, Any]:
    masks = {"heat": {"mask_data": pictures.levels[index], "class_labels": {0: "cool", **HEAT_LEVELS}}}
    if pictures.objects is not None:
        masks["object"] = {"mask_data": pictures.objects[index], "class_labels": {0: "background", 1: "object"}}
    return masks


def _columns(snapshot: Snapshot, history: History, pictures: Pictures, count: int) -> dict[str, list[Any]]:
    """The content of :data:`COLUMNS` (and the slices of volumes), by name, for the first ``count`` images."""
    import wandb

    probe = history.probe
    columns: dict[str, list[Any]] = {
        "epoch": [snapshot.epoch] * count,
        "step": [snapshot.step] * count,
        "image": list(range(count)),
        "picture": [wandb.Image(picture, file_type=_SMALL) for picture in pictures.pictures[:count]],
        "overlay": [wandb.Image(picture, file_type=_SMALL) for picture in pictures.blended[:count]],
        "explained": [probe.name(k) for k in snapshot.target.tolist()],
        "predicted": [probe.name(k) if k >= 0 else None for k in snapshot.prediction.tolist()],
        "label": [None] * count if probe.labels is None else [probe.name(k) for k in probe.labels.tolist()],
        "correct": [right for _, _, right in pictures.notes],
    }
    for name, declared in snapshot.values_per_image().items():
        if not declared.column:
            continue
        values = getattr(snapshot, name)
        numbers = [math.nan] * count if values is None else values.tolist()
        columns[name] = [number if math.isfinite(number) else None for number in numbers]
    if pictures.slices is not None:
        columns["slice"] = pictures.slices
    return {name: column[:count] for name, column in columns.items()}
