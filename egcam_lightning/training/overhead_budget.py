"""When a snapshot is due, and how the time it takes is kept within a budget."""

from __future__ import annotations

from typing import Any

from egcam_lightning.state_values import typed

_ALWAYS = 3  # so many snapshots are taken whatever they cost: fewer show no change


class OverheadBudget:
    """Counts the occasions for a snapshot and lets every ``interval``-th pass.

    Past ``max_overhead`` of the fit's time the interval doubles, so that what remains is evenly spaced.

    Args:
        max_overhead: largest share of the fit's time that snapshots may take; ``None`` for any.

    Example:
        >>> budget = OverheadBudget(max_overhead=0.05)
        >>> [budget.due(elapsed=10.0 * n) and budget.took(0.7) is None for n in range(1, 9)]
        [True, True, True, False, True, False, True, False]

    """

    def __init__(self, max_overhead: float | None = 0.05) -> None:
        self.max_overhead = max_overhead
        self.interval = 1
        self.overhead_seconds = 0.0
        self.elapsed_before = 0.0  # seconds of this fit's earlier sessions
        self._taken = 0
        self._passed = 0  # occasions since the last snapshot

    def fraction(self, elapsed: float) -> float:
        """Share of the fit's time, ``elapsed`` seconds of this session and all before it, spent on snapshots."""
        return self.overhead_seconds / max(elapsed + self.elapsed_before, self.overhead_seconds, 1e-9)

    def left(self, elapsed: float) -> float | None:
        """Seconds that may be spent now; ``None`` for any."""
        if self.max_overhead is None:
            return None
        return max(0.0, self.max_overhead * (elapsed + self.elapsed_before) - self.overhead_seconds)

    def due(self, elapsed: float) -> bool:
        """Count an occasion, and say whether to take a snapshot at it."""
        if self.max_overhead is None:  # whatever the interval that a checkpoint brought
            return True
        self._passed += 1
        if self._passed < self.interval:
            return False
        if self._taken >= _ALWAYS and self.fraction(elapsed) > self.max_overhead and self._passed == self.interval:
            self.interval *= 2
            return False
        return True

    @property
    def explanation(self) -> str:
        """Why snapshots are taken less often."""
        return (
            f"ExpectedGradCAMCallback takes snapshots less often, to stay within max_overhead={self.max_overhead:g} of "
            "the fit's time. Metrics monitored by EarlyStopping keep their last value in between. Pass "
            "max_overhead=None to take them all."
        )

    def took(self, seconds: float) -> None:
        """Book a snapshot that took ``seconds``."""
        self._taken += 1
        self._passed = 0
        self.overhead_seconds += seconds

    def state_dict(self, elapsed: float) -> dict[str, Any]:
        """Everything needed to go on, as plain numbers."""
        return {
            "interval": self.interval,
            "overhead_seconds": self.overhead_seconds,
            "elapsed": elapsed + self.elapsed_before,
            "taken": self._taken,
            "passed": self._passed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.interval, self._taken, self._passed = (typed(state, name, int) for name in ("interval", "taken", "passed"))
        seconds = typed(state, "overhead_seconds", float), typed(state, "elapsed", float)
        self.overhead_seconds, self.elapsed_before = seconds
