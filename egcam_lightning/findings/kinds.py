"""The kinds of what turns images of other classes, and what an excess of each counts for."""

from __future__ import annotations

SPREAD = ("border", "colour", "overlay", "repeat")
"""The kinds of what a class's images may share, see :class:`~egcam_lightning.findings.records.Spread`."""

LEAST = {"capture": 0.5, "border": 0.4, "colour": 0.4, "overlay": 0.4, "repeat": 0.1}
"""A finding's excess is larger: more than parts of objects do in clean networks, see `audit_with`."""

EXPECTED_EXCESS = 0.2
"""What a test must be able to see before its silence says anything: more than its control by so much."""

NOTABLE = {**dict.fromkeys(LEAST, EXPECTED_EXCESS), "repeat": 0.05}
"""The excess from which on there is no all-clear."""


def weight(kind: str, excess: float) -> float:
    """What an excess counts for, whatever its kind: a finding's is above 1.

    Example:
        >>> weight("capture", 0.3) < 1 < weight("repeat", 0.15)
        True

    """
    return excess / LEAST[kind]


def doubt(kind: str, excess: float) -> float:
    """How much an excess speaks against an all-clear, whatever its kind: from 1 on there is none.

    Example:
        >>> doubt("capture", 0.1) < 1 <= doubt("repeat", 0.1)
        True

    """
    return excess / NOTABLE[kind]
