"""What goes wrong in the callback must not stop training: it becomes a warning, once of each kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from egcam_lightning.training.process_group import LostProcess

Result = TypeVar("Result")


class Failsafe:
    """Turns exceptions into warnings that name the task and the cause.

    Args:
        strict: raise them instead.

    Example:
        >>> Failsafe().guard("adding", lambda: 1 + 1)
        2

    """

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self._reported: set[str] = set()

    def guard(self, task: str, work: Callable[[], Result]) -> Result | None:
        """What ``work`` returns, or ``None`` where it raises."""
        try:
            return work()
        except Exception as error:
            self.report(task, error)
            return None

    def report(self, task: str, error: Exception) -> None:
        """Warn of an error, once for each task and kind of error."""
        if self.strict or isinstance(error, LostProcess):  # the training would wait in vain, too
            raise error
        name = type(error).__name__
        kind = f"{task} {name} {getattr(error, 'errno', None)}"  # a full disk and a missing folder are both OSError
        self.warn(f"ExpectedGradCAMCallback: {task} failed, and training goes on. {name}: {error}", kind)

    def warn(self, message: str, kind: str | None = None) -> None:
        """Warn, once of each kind."""
        if self._first(kind or message):
            rank_zero_warn(message)

    def inform(self, message: str) -> None:
        """Say something, once."""
        if self._first(message):
            rank_zero_info(message)

    def _first(self, kind: str) -> bool:
        new = kind not in self._reported
        self._reported.add(kind)
        return new
