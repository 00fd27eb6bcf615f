"""What is spread over processes: modules whose weights are exchanged for parts of them and back, and tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_wrapper(module: nn.Module) -> bool:
    """Whether a module is a sharding wrapper, which prepares itself in its first forward pass and must stay so."""
    return type(module).__module__.startswith("torch.distributed.") and not is_sharded_in_place(module)


def is_sharded_in_place(module: nn.Module) -> bool:
    """Whether FSDP2 exchanges a module's parameters: it remains the user's module, in a class made for it."""
    return any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__)


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor of which each process may hold a part, as tensor-parallel layers return it.

    The processes that hold the other parts must ask for it, too.
    """
    return _as_spread(tensor).full_tensor() if _is_spread(tensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    return _as_spread(tensor).to_local() if _is_spread(tensor) else tensor


def spread_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, spread over processes as another one is. Gradients flow back to the whole."""
    if not _is_spread(other):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate, Shard

    spread = _as_spread(other)
    everywhere = [Replicate()] * spread.device_mesh.ndim
    # What is yet to be added up stays added up.
    placements = [one if isinstance(one, Shard) else Replicate() for one in spread.placements]
    return DTensor.from_local(tensor, spread.device_mesh, everywhere, run_check=False).redistribute(
        placements=placements
    )


def _is_spread(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")  # asked so, since importing the type takes longer than most of what we do


def _as_spread(tensor: Tensor) -> DTensor:
    return cast("DTensor", tensor)
