"""Which of the Trainer's strategies the callback runs under; ``docs/big_runs.md`` has the table, with the tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import Strategy


def check_strategy(strategy: Strategy) -> None:
    """Refuse a strategy under which the callback would wait for ever, or has never been seen to run.

    Args:
        strategy: the Trainer's, with its processes started.

    Raises:
        MisconfigurationException: the message says which strategy to use instead.

    """
    reason = _why_not(strategy)
    if reason:
        raise MisconfigurationException(
            f"ExpectedGradCAMCallback does not run under {type(strategy).__name__}: {reason}, or remove the callback."
        )


def _why_not(strategy: Any) -> str:
    kinds = [kind.__name__ for kind in type(strategy).__mro__]

    def is_a(name: str) -> bool:
        return any(name in kind for kind in kinds)

    if is_a("FSDP"):
        return (
            "it spreads the weights of a layer over processes in a way that has not been tested here. Use "
            "ModelParallelStrategy with `fully_shard` in `configure_model` (FSDP2), or DDP"
        )
    if is_a("DeepSpeed") and getattr(strategy, "zero_stage_3", True):
        return (
            "its stage 3 gathers weights by hooks that wait for every process to make the same passes, and ours do "
            "not. Use stage 1 or 2, ModelParallelStrategy with `fully_shard` in `configure_model` (FSDP2), or DDP"
        )
    if is_a("ModelParallel"):
        from torch.distributed.fsdp import FSDPModule

        if not hasattr(FSDPModule, "reset_iter_state"):
            return "a pass that fails can only be undone with a newer torch. Update torch, use DDP"
    return ""


@dataclass(frozen=True)
class Shares:
    """How work is split over processes.

    Attributes:
        count: into how many shares. Processes that are parallel within layers (tensor parallelism) make each pass
            together, and so do the same share.
        own: which of them this process does.
        hands_in: whether what this process found counts, where others have found the same.

    """

    count: int
    own: int
    hands_in: bool = True

    @classmethod
    def of(cls, strategy: Any) -> Shares:
        """Those of a strategy, with its processes started."""
        if any("ModelParallel" in kind.__name__ for kind in type(strategy).__mro__):
            data, layers = (strategy.device_mesh[name] for name in ("data_parallel", "tensor_parallel"))
            return cls(data.size(), data.get_local_rank(), layers.get_local_rank() == 0)
        return cls(int(getattr(strategy, "world_size", 1)), int(getattr(strategy, "global_rank", 0)))
