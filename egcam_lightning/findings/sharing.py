"""Work that several processes may do together, each a share of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class Workers(Protocol):
    """Processes that do the same, at the same time, and share what takes long."""

    def run_or_raise_everywhere(self, work: Callable[[], Result]) -> Result:
        """Do work that waits for no other process; where it fails in one, it fails in all."""

    def share(self, work: Callable[[Tensor], Tensor], count: int) -> Tensor:
        """Do work on rows, some in each process.

        Args:
            work: from ``(n,)`` int64 rows to what belongs to them, ``(n, ...)``; it waits for no other process.
            count: how many rows there are.

        Returns:
            ``(count, ...)``, the same in every process, where the parts were.

        """


class Alone:
    """One process, which does everything."""

    def run_or_raise_everywhere(self, work: Callable[[], Result]) -> Result:
        """Do it."""
        return work()

    def share(self, work: Callable[[Tensor], Tensor], count: int) -> Tensor:
        """Do all of it.

        Example:
            >>> Alone().share(lambda rows: rows * 10, 3)
            tensor([ 0, 10, 20])

        """
        return work(torch.arange(count))
