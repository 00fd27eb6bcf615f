"""Processes that work each on its own, and may need each other's weights on the way: they take turns.

Where FSDP2 spreads the weights of a model over processes, a pass through it gathers one unit after the other, and all
processes must gather the same one at the same time. Ours do not make the same passes: their images differ, so that a
layer may be a cut in one and not in another, memory runs out in one, and one may have fewer images, or fail. So each
says which unit it needs before it gathers it. All gather that of the process that is farthest into a pass; who needs
another one, has finished, or has failed, gathers it for the others and lets it go. So those who begin a pass wait for
the rest, and go through it together. Nothing else has to be decided together, and nobody waits in vain.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
from torch import Tensor

from egcam_lightning.training.sharded_weights import ShardedWeights

Result = TypeVar("Result")

_DONE, _FAILED = -1, -2  # in the place of a unit's number


class FailedElsewhere(RuntimeError):
    """Another process failed, and this one did not."""


class Turns:
    """Work of several processes that ends in all of them, or fails in all of them.

    Args:
        all_gather: from a tensor to those of all processes, ``(world, ...)`` on the CPU.
        broadcast: from a value, and the number of the process whose it is, to that of this process.
        device: where tensors for ``all_gather`` are to be.
        weights: the weights that are spread over processes; ``None`` where none are.
        collective: calls what waits for the other processes.

    """

    def __init__(
        self,
        all_gather: Callable[[Tensor], Tensor],
        broadcast: Callable[[Any, int], Any],
        device: torch.device,
        weights: ShardedWeights | None,
        collective: Callable[[Callable[[], Any]], Any],
    ) -> None:
        self._all_gather = all_gather
        self._broadcast = broadcast
        self._device = device
        self._weights = weights
        self._collective = collective
        self._level = 0  # of the work in hand, which may consist of such work
        self._gathered = 0  # units, for the pass that this process is in
        self._failure: FailedElsewhere | None = None  # known and not yet raised from all the work that it ends
        self._failed_level = 0
        self._owed: int | None = None  # a unit that the others wait for
        self._serving = False

    def run(self, work: Callable[[], Result]) -> Result:
        """Do ``work``; see :meth:`ProcessGroup.run_or_raise_everywhere`."""
        self._level += 1
        try:
            with ExitStack() as stack:
                if self._level == 1 and self._weights is not None:
                    stack.enter_context(self._weights.gathered_in_turn(self._take, self._collective))
                error: Exception | None = None
                result: list[Result] = []
                try:
                    result.append(work())
                except Exception as problem:
                    error = problem
                self._end(error)
                return result[0]
        finally:
            self._level -= 1

    def begin_pass(self) -> None:
        """Before each pass through the model."""
        self._gathered = 0

    def _end(self, error: Exception | None) -> None:
        """Wait until all have done their work, and gather for them what they need; raise where it fails in one."""
        said = self._failure is None  # else all know of a failure, and nobody waits to hear of this one
        while self._failure is None:
            found = self._say(_DONE if error is None else _FAILED, error)
            if found is None:
                break
            unit = _next(found)
            if unit is None:
                return
            try:
                self._gather(unit)
            except Exception as problem:  # it is tried once more, and what it was for fails
                error = problem
        failure = self._failure
        assert failure is not None
        if self._level <= self._failed_level:
            self._failure = None
        raise error if error is not None and said else failure

    def _take(self, unit: int) -> None:
        """Return when all gather this unit; gather others for others until then."""
        while not self._serving:
            if self._failure is not None:
                raise self._failure
            found = self._say(unit)
            chosen = None if found is None else _next(found)
            if chosen == unit:
                self._gathered += 1
                return
            if chosen is not None:
                self._gather(chosen)

    def _gather(self, unit: int) -> None:
        assert self._weights is not None
        self._owed, self._serving = unit, True
        try:
            self._weights.gather(unit)
        finally:
            self._serving = False
        self._owed = None

    def _say(self, what: int, error: Exception | None = None) -> list[list[int]] | None:
        """Say what this process does next, and hear what the others do.

        Args:
            what: the unit that it needs; or that it has finished, or failed.
            error: how it failed.

        Returns:
            Level, what, and units gathered, of each process; ``None`` where one has failed.

        """
        if self._owed is not None:  # memory ran out in the midst of it
            self._gather(self._owed)
        mine = torch.tensor([self._level, what, self._gathered], device=self._device)
        found: list[list[int]] = self._all_gather(mine).tolist()
        failed = [rank for rank, (_, each, _) in enumerate(found) if each == _FAILED]
        if failed:
            cause = self._broadcast(f"{type(error).__name__}: {error}", failed[0])
            self._failure = FailedElsewhere(f"it failed in process {failed[0]}. {cause}")
            self._failed_level = min(found[rank][0] for rank in failed)
            return None
        return found


def _next(found: list[list[int]]) -> int | None:
    """The unit to gather next; ``None`` where nobody needs any."""
    waiting = [(-gathered, rank, what) for rank, (_, what, gathered) in enumerate(found) if what >= 0]
    return min(waiting)[2] if waiting else None
