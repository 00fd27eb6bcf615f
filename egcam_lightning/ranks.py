"""The probe over several processes: each explains its share, and every one ends up with the whole."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor


class Ranks:
    """Splits work over the processes of a strategy and gathers what they found.

    Shares are interleaved and padded to one length, since gathering needs equal shapes everywhere.

    Args:
        strategy: the Trainer's strategy.

    """

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self.rank = int(getattr(strategy, "global_rank", 0))
        self.world = int(getattr(strategy, "world_size", 1))

    def share(self, count: int) -> tuple[Tensor, int]:
        """Rows of ``count`` that this process works on.

        Returns:
            The rows, as many in every process, and how many of them are its own; the rest is padding.

        """
        length = -(-count // self.world)
        rows = torch.arange(length * self.world)[self.rank :: self.world]
        return rows % count, int((rows < count).sum())

    def gather(self, share: Tensor, count: int) -> Tensor:
        """``(count, ...)`` on the CPU: the whole, from every process's share ``(n, ...)``."""
        if self.world == 1:
            return share.cpu()
        gathered = self._strategy.all_gather(share.contiguous())
        return gathered.transpose(0, 1).flatten(0, 1)[:count].cpu()

    def stack(self, value: Tensor) -> Tensor:
        """``(world, ...)`` on the CPU: a value of one shape from every process."""
        return value[None].cpu() if self.world == 1 else self._strategy.all_gather(value).cpu()

    def all(self, flag: bool) -> bool:
        """Whether ``flag`` is true in every process."""
        if self.world == 1:
            return flag
        return bool(self.stack(torch.tensor(int(flag), device=self._strategy.root_device)).all())

    def first(self, value: Any) -> Any:
        """What the first process holds."""
        return value if self.world == 1 else self._strategy.broadcast(value)
