"""What a difference of two shares may be called: its interval, its chance level, and the level of many at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

_Z = 1.959963984540054  # of a two-sided 95 % interval


def wilson(hits: float, count: float, z: float = _Z) -> tuple[float, float]:
    """Wilson's interval of a share.

    Example:
        >>> low, high = wilson(5, 10)
        >>> round(low, 3), round(high, 3)
        (0.237, 0.763)

    """
    if count <= 0:
        return 0.0, 1.0
    share = hits / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def difference_interval(hits: float, count: float, other_hits: float, other_count: float) -> tuple[float, float]:
    """Newcombe's interval of the difference of two independent shares, at 95 %.

    Args:
        hits: of the first.
        count: that the first are out of.
        other_hits: of the second.
        other_count: that these are out of.

    Returns:
        Its two ends.

    Example:
        >>> low, high = difference_interval(56, 70, 48, 80)  # Newcombe (1998), table II
        >>> round(low, 4), round(high, 4)
        (0.0524, 0.3339)

    """
    if count <= 0 or other_count <= 0:
        return -1.0, 1.0
    first, second = hits / count, other_hits / other_count
    low, high = wilson(hits, count)
    other_low, other_high = wilson(other_hits, other_count)
    return (
        first - second - math.hypot(first - low, other_high - second),
        first - second + math.hypot(high - first, second - other_low),
    )


def fisher(hits: int, count: int, other_hits: int, other_count: int) -> float:
    """Fisher's exact test, one-sided: how often chance gives the first so many of the hits of both.

    Example:
        >>> fisher(3, 4, 1, 4)  # the lady tasting tea
        0.242857...

    """
    total, both = hits + other_hits, count + other_count
    if not count or not other_count:
        return 1.0
    whole = _log_choose(both, total)
    terms = (
        math.exp(_log_choose(count, k) + _log_choose(other_count, total - k) - whole)
        for k in range(max(hits, total - other_count), min(count, total) + 1)
    )
    return min(1.0, sum(terms))


def holm(chances: Sequence[float], level: float) -> list[bool]:
    """Which of several tests hold together at a level, by Holm's procedure.

    Example:
        >>> holm([0.01, 0.04, 0.03], 0.05)
        [True, False, False]

    """
    order = sorted(range(len(chances)), key=lambda i: chances[i])
    passed = [False] * len(chances)
    for rank, index in enumerate(order):
        if chances[index] > level / (len(chances) - rank):
            break
        passed[index] = True
    return passed


def visible_excess(control: float, count: int, level: float) -> float:
    """The smallest excess over a control that a test sees four times in five.

    Args:
        control: the control's share.
        count: that each of the two shares is out of.
        level: of the test, one-sided.

    Returns:
        The excess; infinite where even one that turns everything is not seen.

    Example:
        >>> round(visible_excess(0.05, 60, 0.005), 2)
        0.23

    """
    normal = NormalDist()
    strict, power = normal.inv_cdf(1 - level), normal.inv_cdf(0.8)
    for step in range(1, 101):
        excess = step / 100
        other = control + excess
        if count < 1 or other > 1:
            break
        pooled = (control + other) / 2
        together = math.sqrt(2 * pooled * (1 - pooled) / count)
        apart = math.sqrt((control * (1 - control) + other * (1 - other)) / count)
        if excess >= strict * together + power * apart:
            return excess
    return math.inf


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
