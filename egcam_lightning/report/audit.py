"""The page of an audit: what was tested, and a row a class, the largest excess first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from egcam_lightning.findings.records import AuditRecord, ClassRecord, Effect, Patch
from egcam_lightning.findings.sentences import percent
from egcam_lightning.pictures.pixels import to_display
from egcam_lightning.report.payload import encode_image
from egcam_lightning.report.templates import ASSETS, content_hash, templates

_ENLARGED = 96  # pixels that the longer side of a patch takes at least


def render_audit(record: AuditRecord, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> str:
    """Write the page of an audit.

    Args:
        record: the audit.
        mean: what was subtracted from the images, for display.
        std: what they were divided by.

    Returns:
        One self-contained page without a script.

    Example:
        >>> nothing = AuditRecord((), (), 0, "", 1.0, "Not tested: there were no images.")
        >>> "Not tested: there were no images." in render_audit(nothing)
        True

    """
    from markupsafe import Markup

    style = (ASSETS / "audit.css").read_text(encoding="utf-8")
    return (
        templates()
        .get_template("audit.html.jinja")
        .render(
            style=Markup(style),
            style_hash=content_hash(style),
            record=record,
            tested=record.tested,
            state="alarm" if record.findings else "clear" if record.clear else "open",
            rows=class_rows(record, mean, std),
        )
    )


def class_rows(
    record: AuditRecord, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> list[dict[str, Any]]:
    """What ``classes.html.jinja`` shows of an audit, a row a class."""
    found = {finding.target for finding in record.findings}
    return [
        {
            "record": one,
            "found": one.target in found,
            "capture": _bars(one.capture),
            "removal": _bars(one.removal),
            "map": _mean_map(one),
            "patches": [{"src": _picture(patch, mean, std), "share": percent(patch.share)} for patch in one.patches],
        }
        for one in record.classes
    ]


def _bars(effect: Effect | None) -> dict[str, Any] | None:
    if effect is None:
        return None
    low, high = effect.interval
    return {
        "effect": percent(effect.effect),
        "control": percent(effect.control),
        "interval": f"{100 * low:+.0f} to {100 * high:+.0f} points",
    }


def _mean_map(record: ClassRecord) -> str | None:
    if not record.mean_map.numel():
        return None
    peak = record.mean_map.amax().clamp(min=torch.finfo(torch.float32).tiny)
    grey = (255 * (1 - record.mean_map / peak)).to(torch.uint8)[..., None].expand(-1, -1, 3)
    return encode_image(grey.contiguous())


def _picture(patch: Patch, mean: Sequence[float] | None, std: Sequence[float] | None) -> str:
    image = to_display(patch.pixels[None], mean, std)[0][0]
    times = max(1, -(-_ENLARGED // max(patch.size)))
    return encode_image(image.repeat_interleave(times, 0).repeat_interleave(times, 1))
