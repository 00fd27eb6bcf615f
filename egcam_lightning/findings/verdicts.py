"""Which of the measured effects are findings, and what each says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from egcam_lightning.findings.kinds import weight
from egcam_lightning.findings.records import ClassRecord, Effect, Finding
from egcam_lightning.findings.sentences import captured, removed, smaller, spread
from egcam_lightning.findings.shares import holm

LEVEL = 0.05  # of all tests of an audit together
LEAST_REMOVAL = 0.3


def passed(classes: Iterable[ClassRecord]) -> set[tuple[int, str]]:
    """The captures that passed their test and are large enough, as classes and kinds."""
    tested = [(record.target, kind, effect) for record in classes for kind, effect in record.captures]
    significant = holm([effect.chance for _, _, effect in tested], LEVEL)
    return {
        (target, kind)
        for (target, kind, effect), holds in zip(tested, significant, strict=True)
        if holds and weight(kind, effect.excess) > 1
    }


def findings(classes: Sequence[ClassRecord], those: set[tuple[int, str]]) -> tuple[Finding, ...]:
    """What is found of the classes whose captures passed: removals last, the largest excess first.

    What images repeat is a finding of its own only where no window does it.

    Args:
        classes: all.
        those: classes and kinds that :func:`passed`.

    """
    found = []
    for record in classes:
        captures = [(kind, effect) for kind, effect in record.captures if (record.target, kind) in those]
        by_windows = "capture" in dict(captures)
        found += [_finding(record, *one) for one in captures if not (by_windows and one[0] == "repeat")]
        # Networks call few images by their class without the object's most telling part: of a patch that has been
        # found to do the calling it is worth saying, else it is no sign of a shortcut.
        removal = record.removal if by_windows else None
        if removal is not None and removal.chance <= LEVEL and removal.excess >= LEAST_REMOVAL:
            found.append(_finding(record, "removal", removal))
    return tuple(sorted(found, key=lambda f: (f.kind == "removal", -f.excess, f.kind != "capture")))


def _finding(record: ClassRecord, kind: str, effect: Effect) -> Finding:
    of_windows = kind in ("capture", "removal")
    shares = (record.class_name, effect.effect, effect.control)
    if of_windows:
        counts = (record.num_windows, record.num_right)
        sentence = _captured(record, (*shares, *counts)) if kind == "capture" else removed(*shares, *counts)
    else:
        sentence = spread(kind, *shares, effect.pastes)
    return Finding(
        target=record.target,
        class_name=record.class_name,
        kind=kind,
        effect=effect.effect,
        control=effect.control,
        interval=effect.interval,
        num_images=record.num_images,
        patches=record.patches if of_windows else (),
        sentence=sentence,
    )


def _captured(record: ClassRecord, shares: tuple[str, float, float, int, int]) -> str:
    """What the finding of a capture says, with how small a part does it where that was tried."""
    said = captured(*shares, record.num_strong)
    if not record.parts:
        return said
    smallest = record.smallest_part
    part = smallest or record.parts[0]
    size, capture = (part.height, part.width), part.capture
    return f"{said} {smaller(size, capture.effect, capture.control, does_it=smallest is not None)}"
