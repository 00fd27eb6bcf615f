"""Modules whose weights others exchange: for parts of them, spread over processes, and back."""

from __future__ import annotations

from torch import nn


def is_wrapper(module: nn.Module) -> bool:
    """Whether a module is a sharding wrapper, which prepares itself in its first forward pass and must stay so."""
    return type(module).__module__.startswith("torch.distributed.") and not is_sharded_in_place(module)


def is_sharded_in_place(module: nn.Module) -> bool:
    """Whether FSDP2 exchanges a module's parameters: it remains the user's module, in a class made for it."""
    return any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__)
