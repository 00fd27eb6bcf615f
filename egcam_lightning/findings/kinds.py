"""The kinds of what turns images of other classes, and what an excess of each counts for."""

from __future__ import annotations

SPREAD = ("border", "colour", "overlay", "repeat")
"""The kinds of what a class's images may share, see :class:`~egcam_lightning.findings.records.Spread`."""

LEAST = {"capture": 0.4, "border": 0.4, "colour": 0.4, "overlay": 0.4, "repeat": 0.1}
"""The excess from which on it is a finding: more than parts of objects do in clean networks, see `audit_with`."""

NOTABLE = 0.5
"""The weight from which on there is no all-clear: half of a finding's."""


def weight(kind: str, excess: float) -> float:
    """What an excess counts for, whatever its kind: 1 is what a finding needs.

    Example:
        >>> weight("capture", 0.3) < 1 < weight("repeat", 0.15)
        True

    """
    return excess / LEAST[kind]
