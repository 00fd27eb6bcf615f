"""The probe over several processes: each explains its share, and every one ends up with the whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn

from egcam_lightning.training.sharded_weights import ShardedWeights
from egcam_lightning.training.strategies import Shares
from egcam_lightning.training.turns import Turns

Result = TypeVar("Result")


class LostProcess(RuntimeError):
    """Another process does not answer: none of what follows, the training's own steps included, can go on."""


class ProcessGroup:
    """Splits work over the processes of a strategy and gathers what they found.

    Shares are interleaved and padded to one length, so that processes make about the same passes.

    Args:
        strategy: the Trainer's strategy.
        module: the module that it trains, whose weights may be spread over the processes; ``None`` where they are not.

    Raises:
        LostProcess: from any method that waits for the other processes, where one of them does not answer.

    """

    def __init__(self, strategy: Strategy, module: nn.Module | None = None) -> None:
        self._strategy = strategy
        self.rank = int(getattr(strategy, "global_rank", 0))
        self.world = int(getattr(strategy, "world_size", 1))
        self.shares = Shares.of(strategy)
        self._lost: LostProcess | None = None
        self._weights = None if module is None or self.world == 1 else ShardedWeights(module)
        if self.world > 1:
            self._turns = Turns(self.all_gather, self.broadcast, strategy.root_device, self._weights, self._together)

    def _together(self, collective: Callable[[], Result]) -> Result:
        """Call what waits for the other processes."""
        if self._lost is not None:
            raise self._lost
        try:
            return collective()
        except RuntimeError as error:
            self._lost = LostProcess(
                "ExpectedGradCAMCallback waited in vain for another process, which has ended, or did not answer within "
                f"the process group's timeout. {type(error).__name__}: {error}"
            )
            raise self._lost from error

    @property
    def shards_weights(self) -> bool:
        """Whether each process holds a part of the module's weights only."""
        return bool(self._weights)

    def begin_pass(self) -> None:
        """Before each pass through the module: forget one that ended half way."""
        if self._weights is not None:
            self._weights.begin_pass()
            self._turns.begin_pass()

    def shard(self, count: int) -> tuple[Tensor, int]:
        """Rows of ``count`` that this process works on.

        Returns:
            The rows, as many in every process, and how many of them are its share's own; the rest is padding.

        """
        parts = self.shares.count
        rows = torch.arange(-(-count // parts) * parts)[self.shares.own :: parts]
        return rows % count, int((rows < count).sum())

    def gather(self, share: Tensor, count: int) -> Tensor:
        """``(count, ...)`` on the CPU: the whole, from every process's share ``(n, ...)``."""
        rows, own = self.shard(count)
        return self.assemble(share[:own], rows[:own], count)

    def share(self, work: Callable[[Tensor], Tensor], count: int) -> Tensor:
        """Do work on rows, some in each process; where it fails in one, it fails in all.

        Args:
            work: from ``(n,)`` int64 rows to what belongs to them, ``(n, ...)``, of one shape and type everywhere; it
                waits for no other process.
            count: how many rows there are, one at least.

        Returns:
            ``(count, ...)``, where the parts were.

        """
        rows, _ = self.shard(count)
        part = self.run_or_raise_everywhere(lambda: work(rows))
        return self.gather(part, count).to(part.device)

    def all_gather(self, value: Tensor) -> Tensor:
        """``(world, ...)`` on the CPU: a value of one shape from every process."""
        if self.world == 1:
            return value[None].cpu()
        return self._added(value[None], torch.tensor([self.rank]), self.world)

    def all(self, flag: bool) -> bool:
        """Whether ``flag`` is true in every process."""
        if self.world == 1:
            return flag
        flags = torch.tensor(int(flag), device=self._strategy.root_device)
        return self._together(lambda: int(self._strategy.reduce(flags, reduce_op="sum"))) == self.world

    def broadcast(self, value: Any, source: int = 0) -> Any:
        """What the first process holds, or process ``source``."""
        return value if self.world == 1 else self._together(lambda: self._strategy.broadcast(value, source))

    def broadcast_known(self, value: Any) -> Any:
        """What the first process holds that holds anything; ``None`` where none does."""
        if self.world == 1:
            return value
        known = self.all_gather(torch.tensor(int(value is not None), device=self._strategy.root_device))
        return self.broadcast(value, int(known.argmax())) if bool(known.any()) else None

    def assemble(self, part: Tensor, rows: Tensor, count: int) -> Tensor:
        """``(count, ...)`` on the CPU: the whole, from the rows of every process.

        Each process puts its rows where they belong into a buffer of zeros, and the buffers are added. So what travels
        depends on ``count`` alone, where gathering padded parts would grow with the processes. Bytes are added, which
        leaves every bit as it is.

        Args:
            part: this process's rows ``(n, ...)``, of the same shape and type everywhere, but for their number.
            rows: ``(n,)``, where they belong; each row belongs to one share.
            count: rows of the whole.

        """
        counts = None if self.shares.hands_in else 0
        return self._added(part[:counts], rows[:counts], count)

    def _added(self, part: Tensor, rows: Tensor, count: int) -> Tensor:
        if self.world == 1:
            return part.cpu()
        whole = part.new_zeros(count, *part.shape[1:])
        whole[rows.to(part.device)] = part
        # What is returned counts: not every strategy adds in place.
        added = self._together(lambda: self._strategy.reduce(whole.view(-1).view(torch.uint8), reduce_op="sum").cpu())
        return added.view(part.dtype).view(whole.shape)

    def run_or_raise_everywhere(self, work: Callable[[], Result]) -> Result:
        """Do ``work`` that waits for no other process; where it fails in one, it fails in all, and nobody waits.

        Passes through the module, whose weights may be spread over the processes, are made inside alone, and as many
        as each process needs: see :mod:`~egcam_lightning.training.turns`.

        Args:
            work: what to do. It may consist of such work in turn.

        Returns:
            What it returns in this process.

        Raises:
            Exception: what it raised in this process.
            FailedElsewhere: where it raised in another one; the message names the cause.

        """
        return work() if self.world == 1 else self._turns.run(work)
