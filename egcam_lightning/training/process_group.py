"""The probe over several processes: each explains its share, and every one ends up with the whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import Strategy
from torch import Tensor

Result = TypeVar("Result")


def check_strategy(strategy: Strategy) -> None:
    """Refuse a strategy that no process can explain under by itself.

    Raises:
        MisconfigurationException: where it spreads the weights of a layer over processes.

    """
    kinds = [kind.__name__ for kind in type(strategy).__mro__]
    if any(name in kind for kind in kinds for name in ("FSDP", "DeepSpeed", "ModelParallel")):
        raise MisconfigurationException(
            f"ExpectedGradCAMCallback does not run under {type(strategy).__name__}: the weights of a layer are spread "
            "over processes there. Use DDP, or remove the callback."
        )


class FailedElsewhere(RuntimeError):
    """Another process failed, and this one did not."""


class ProcessGroup:
    """Splits work over the processes of a strategy and gathers what they found.

    Shares are interleaved and padded to one length, since gathering needs equal shapes everywhere.

    Args:
        strategy: the Trainer's strategy.

    """

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self.rank = int(getattr(strategy, "global_rank", 0))
        self.world = int(getattr(strategy, "world_size", 1))

    def shard(self, count: int) -> tuple[Tensor, int]:
        """Rows of ``count`` that this process works on.

        Returns:
            The rows, as many in every process, and how many of them are its own; the rest is padding.

        """
        length = -(-count // self.world)
        rows = torch.arange(length * self.world)[self.rank :: self.world]
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
        # Strategies stack what they gather, or concatenate it.
        return self._strategy.all_gather(value).cpu().reshape(self.world, *value.shape)

    def all(self, flag: bool) -> bool:
        """Whether ``flag`` is true in every process."""
        if self.world == 1:
            return flag
        flags = torch.tensor(int(flag), device=self._strategy.root_device)
        return int(self._strategy.reduce(flags, reduce_op="sum")) == self.world

    def broadcast(self, value: Any, source: int = 0) -> Any:
        """What the first process holds, or process ``source``."""
        return value if self.world == 1 else self._strategy.broadcast(value, source)

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
            rows: ``(n,)``, where they belong; each row belongs to one process.
            count: rows of the whole.

        """
        if self.world == 1:
            return part.cpu()
        whole = part.new_zeros(count, *part.shape[1:])
        whole[rows.to(part.device)] = part
        # What is returned counts: not every strategy adds in place.
        added = self._strategy.reduce(whole.view(-1).view(torch.uint8), reduce_op="sum")
        return added.cpu().view(part.dtype).view(whole.shape)

    def run_or_raise_everywhere(self, work: Callable[[], Result]) -> Result:
        """Do ``work`` that waits for no other process; where it fails in one, it fails in all, and nobody waits.

        Args:
            work: what to do.

        Returns:
            What it returns in this process.

        Raises:
            Exception: what it raised in this process.
            FailedElsewhere: where it raised in another one; the message names the cause.

        """
        if self.world == 1:
            return work()
        result: list[Result] = []
        error: Exception | None = None
        try:
            result.append(work())
        except Exception as problem:
            error = problem
        if not self.all(error is None):
            failed = self.all_gather(torch.tensor(int(error is not None), device=self._strategy.root_device))
            rank = int(failed.argmax())
            cause = self.broadcast(f"{type(error).__name__}: {error}", rank)
            raise error if error is not None else FailedElsewhere(f"it failed in process {rank}. {cause}")
        return result[0]
