"""The page of an audit: what was tested, and a row a class, the largest excess first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from egcam_lightning.findings.records import AuditRecord, ClassRecord, Effect, Paste
from egcam_lightning.findings.sentences import TRIED, percent, turned_by
from egcam_lightning.metrics.registry import NUMBERS
from egcam_lightning.pictures.patches import as_shown
from egcam_lightning.report.payload import encode_image
from egcam_lightning.report.templates import ASSETS, content_hash, templates

_SAID = 3
_WHAT_TO_DO = (
    "If it shows the object itself, this is as it should be; with `masks_key` (`masks` of an audit) objects are "
    "left out. If not, take it out of the data."
)
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
            said=said_first(record),
            tried=TRIED,
            rows=class_rows(as_shown(record, mean, std)),
        )
    )


def said_first(record: AuditRecord) -> list[str]:
    """The first sentences of an audit's findings, for the head of a page: of many, how many more there are."""
    said = [finding.sentence for finding in record.findings]
    more = len(said) - _SAID
    if more > 0:
        said = [*said[:_SAID], f"And {more} more below."]
    return [*said, _WHAT_TO_DO] if said else said


def class_rows(record: AuditRecord) -> list[dict[str, Any]]:
    """What ``classes.html.jinja`` shows of an audit, a row a class; its pixels are as people see them."""
    # What is spread says the same beside its images.
    of_windows = [finding for finding in record.findings if finding.patches]
    said = {one.target: [f.sentence for f in of_windows if f.target == one.target] for one in record.classes}
    found = {finding.target for finding in record.findings}
    return [
        {
            "record": one,
            "found": one.target in found,
            "said": said[one.target],
            "capture": _bars(one.capture),
            "removal": _bars(one.removal),
            "map": _mean_map(one),
            "spread": [
                {
                    **turned_by(part.kind),
                    "capture": _bars(part.capture),
                    "pastes": [_before_and_after(paste) for paste in part.pastes],
                }
                for part in one.spread
            ],
            "patches": [
                {
                    "src": _picture(patch.pixels),
                    "share": percent(patch.share),
                    "pastes": [_before_and_after(paste) for paste in one.pastes if paste.patch == place],
                }
                for place, patch in enumerate(one.patches)
            ],
        }
        for one in record.classes
    ]


def faithfulness_rows(record: AuditRecord) -> list[dict[str, Any]]:
    """What a page shows of how faithful maps are, a row a metric."""
    return [
        {**asdict(one), "title": NUMBERS[one.key].title, "arrow": NUMBERS[one.key].arrow} for one in record.faithfulness
    ]


def _before_and_after(paste: Paste) -> dict[str, str]:
    return {"before": _picture(paste.before), "after": _picture(paste.after), "called": paste.called}


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


def _picture(pixels: Tensor) -> str:
    """Enlarge ``(3, h, w)`` uint8 by whole pixels, where it is small."""
    times = max(1, -(-_ENLARGED // max(pixels.shape[1:])))
    return encode_image(pixels.movedim(0, -1).repeat_interleave(times, 0).repeat_interleave(times, 1))
