"""A device that there is not: tensors of the CPU that behave as if they lay on an accelerator.

They refuse to meet tensors of the CPU as those of a CUDA device do, and whatever would have the host wait for a device
is counted. What is wrong with kernels, precision or memory of a real device they cannot show.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretended"

_aten = torch.ops.aten
# The host waits for their result, because it needs values or a size that follows from values.
_READS = {
    "_local_scalar_dense",
    "is_nonzero",
    "equal",
    "nonzero",
    "masked_select",
    "unique_dim",
    "unique_consecutive",
    "_unique",
    "_unique2",
    "bincount",
    "_linalg_check_errors",
}
# Those that take tensors of the CPU beside others.
_MIX = {"copy_", "_copy_from", "index", "index_put_", "index_put", "_index_put_impl_"}

_waits: list[Counter[str]] = []


@contextmanager
def counted_waits(counter: Counter[str]) -> Iterator[None]:
    """Count how often the host waits for the device inside, by what it waits for."""
    _waits.append(counter)
    try:
        yield
    finally:
        del _waits[-1]


def _waited(what: str) -> None:
    for counter in _waits:
        counter[what] += 1


class PretendedTensor(Tensor):
    """A tensor on the pretended device; ``held`` is where its values are."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> PretendedTensor:
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held.held if isinstance(held, PretendedTensor) else held

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: PretendedTensor) -> None:
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.held = value.held

    def __deepcopy__(self, memo: dict[int, Any]) -> PretendedTensor:
        if id(self) not in memo:
            copied = PretendedTensor(self.held.clone()).requires_grad_(self.requires_grad)
            if hasattr(self, "_is_param"):
                copied._is_param = True
            memo[id(self)] = copied
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _placed, (self.held, self.requires_grad)

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError("can't convert a tensor of a device to numpy. Use Tensor.cpu() first.")
        return self.held.numpy(force=True)

    def tolist(self) -> Any:  # which torch refuses subclasses
        _waited("_to_copy")
        return self.held.tolist()

    def __format__(self, spec: str) -> str:
        return format(self.item() if self.ndim == 0 else self, spec)

    def __repr__(self) -> str:
        return f"pretended({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _placed(held: Tensor, requires_grad: bool) -> PretendedTensor:
    return PretendedTensor(held).requires_grad_(requires_grad)


torch.serialization.add_safe_globals([_placed])


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name = func._schema.name.removeprefix("aten::")
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    here = [isinstance(tensor, PretendedTensor) for tensor in tensors]
    elsewhere = [tensor for tensor, mine in zip(tensors, here, strict=True) if not mine and tensor.ndim > 0]
    if elsewhere and any(here) and not (name in _MIX and (here[0] or name == "copy_")):
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got some of two.")
    to = kwargs.get("device")
    leaves = to is not None and torch.device(to).type != NAME
    blocks = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
    copies = (name == "_to_copy" and leaves) or (name == "copy_" and not all(here))
    masks = name.startswith(("index", "_index_put")) and any(
        t.dtype in (torch.bool, torch.uint8) for t in tree_leaves(args[1]) if isinstance(t, Tensor)
    )
    carried = name.startswith(("index", "_index_put")) and bool(elsewhere)  # indices on their way to the device
    if name in _READS or (copies and blocks) or masks or carried:
        _waited(name)
    if to is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    plain_args, plain_kwargs = tree_map(_held, (args, kwargs))
    out = func(*plain_args, **plain_kwargs)
    if leaves:
        return out
    wrapped = tree_map(lambda one: PretendedTensor(one) if isinstance(one, Tensor) else one, out)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


def _held(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, PretendedTensor) else leaf


class _Module(_DummyBackendModule):
    """What torch asks of a backend beside its kernels."""

    @staticmethod
    def get_rng_state(device: Any = None) -> Tensor:
        return torch.get_rng_state()  # numbers are drawn by the CPU's generator

    @staticmethod
    def set_rng_state(state: Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def _made_here(op: Any) -> Any:
    """A function that makes a tensor on the pretended device as ``op`` makes one on a CPU."""

    def make(*args: Any, **kwargs: Any) -> PretendedTensor:
        kwargs["device"] = torch.device("cpu")
        if kwargs.pop("pin_memory", None):
            raise RuntimeError("only tensors of a CPU can be pinned")
        return PretendedTensor(op(*args, **kwargs))

    return make


def _copied(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    if not non_blocking:
        _waited("copy_")
    _held(target).copy_(_held(source))
    return target


@cache
def make_known() -> tuple[torch.library.Library, ...]:
    """Have torch know the device. From then on no process that is forked can take a gradient."""
    _setup_privateuseone_for_python_backend(NAME, _Module())
    library = torch.library.Library("aten", "IMPL")
    names = {"aten::empty.memory_format", "aten::empty_strided"}
    for key in ("CompositeExplicitAutograd", "CompositeImplicitAutograd"):
        names |= set(torch._C._dispatch_get_registrations_for_dispatch_key(key))
    for full in sorted(names):
        if not full.startswith("aten::"):
            continue
        base, _, overload = full.removeprefix("aten::").partition(".")
        op = getattr(getattr(_aten, base, None), overload or "default", None)
        if op is None:
            continue
        takes, gives = op._schema.arguments, op._schema.returns
        devices, tensors = any(a.name == "device" for a in takes), any("Tensor" in str(a.type) for a in takes)
        if devices and not tensors and str(gives[0].type) == "Tensor":
            library.impl(full.removeprefix("aten::"), _made_here(op), "PrivateUse1")
    library.impl("_copy_from", _copied, "PrivateUse1")  # `torch.tensor` asks no subclass
    everything = torch.library.Library("_", "IMPL")
    everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    return library, everything  # kept: what is registered goes with them
