"""What an audit knows of a class as a row of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from egcam_lightning.findings.kinds import SPREAD

if TYPE_CHECKING:
    from egcam_lightning.findings.records import ClassRecord, Effect, Part


def row_of(record: ClassRecord, *, finding: bool) -> dict[str, Any]:
    """A row for ``pandas.DataFrame``; ``None`` for what was not tested.

    Args:
        record: of the class.
        finding: whether it has one.

    """
    spread = {one.kind: one.capture for one in record.spread}
    return {
        "target": record.target,
        "class_name": record.class_name,
        "num_images": record.num_images,
        "num_right": record.num_right,
        "finding": finding,
        **_effect("capture", record.capture),
        **_effect("removal", record.removal),
        **_part(record.smallest_part),
        **{key: value for kind in SPREAD for key, value in _effect(kind, spread.get(kind)).items()},
        "likeness": record.likeness,
        "likeness_to_others": record.likeness_to_others,
        "why_not": record.why_not,
    }


def _effect(kind: str, effect: Effect | None) -> dict[str, float | None]:
    low, high = (None, None) if effect is None else effect.interval
    return {
        kind: None if effect is None else effect.effect,
        f"{kind}_control": None if effect is None else effect.control,
        f"{kind}_excess": None if effect is None else effect.excess,
        f"{kind}_low": low,
        f"{kind}_high": high,
        f"{kind}_chance": None if effect is None else effect.chance,
    }


def _part(part: Part | None) -> dict[str, float | None]:
    return {
        "part_height": None if part is None else part.height,
        "part_width": None if part is None else part.width,
        "part_capture": None if part is None else part.capture.effect,
    }
