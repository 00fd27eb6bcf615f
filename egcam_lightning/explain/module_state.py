"""What modules hold, and what that holds in turn: recorded, and put back as it was."""

from __future__ import annotations

import sys
from array import array
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from egcam_lightning.explain.chunking import is_out_of_memory
from egcam_lightning.explain.put_back import (
    bits_of,
    generator_put_back,
    has_member,
    is_in_place,
    put_back_gradient,
    put_back_items,
    put_back_list,
    put_back_memory,
    put_back_scripted,
    put_back_slots,
)
from egcam_lightning.explain.sharding import is_sharded_in_place, is_wrapper

_PIECE = 2**20  # elements that are compared at once

# What holds nothing that could move. A list of a million of these is copied, and not looked into one by one.
_ATOMS = {type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size}

_CONTAINERS = {dict, list, set, tuple, frozenset, deque, OrderedDict, defaultdict, Counter, bytearray, array}

# Packages whose objects have a life of their own (the Trainer, loggers, data sets, graphs): never looked into. An
# object is theirs where any of its classes is; modules, tensors and generators are recognised before.
_FOREIGN = {
    *sys.stdlib_module_names,
    *("torch", "numpy", "lightning", "lightning_fabric", "pytorch_lightning"),
    *("wandb", "tensorboard", "tensorboardX", "mlflow", "comet_ml", "neptune", "clearml", "aim", "litlogger"),
} - {"abc", "argparse", "builtins", "collections", "dataclasses", "types", "typing"}

# An object that holds one of these directly is at work in other threads or outside the process.
_AT_WORK = {"_io", "_queue", "_socket", "_thread", "asyncio", "concurrent", "multiprocessing", "queue", "threading"}


class State:
    """What modules hold, as it is now.

    One pass over everything that can be reached from the modules' attributes: containers, tensors, arrays, generators
    of random numbers, other modules (a metric in a dictionary, a teacher in a list), and objects of the user's own with
    what they hold. Left alone: what has a life of its own, such as the Trainer, loggers, data sets, threads and files,
    and what keeps its state out of Python's sight, such as an iterator.

    Tensors and arrays are copied, once for all states that are nested in each other: where an earlier state that is
    still to be put back has a copy, only the pieces that have moved since are copied again. Parameters are copied where
    ``weights`` says so; else they get their memory back where they were given another one, but what is written into it
    stays. Containers are copied by reference: a list of a million paths costs 8 MB and a tenth of a second, one of a
    million lists ten seconds.

    Args:
        modules: where to begin.
        earlier: states whose copies can be shared; they must be put back after this one.
        weights: whether to copy the parameters: those that are trained, and those that a model moves by itself, such as
            the running average of a momentum encoder.

    Raises:
        torch.OutOfMemoryError: where a copy finds no memory. Copies that do not fit on a device are kept on the CPU.

    """

    def __init__(self, modules: Iterable[nn.Module], earlier: Sequence[State] = (), *, weights: bool = False) -> None:
        self._weights = weights
        self._put_back: list[Callable[[], object]] = []
        self._kept: dict[int, _Kept] = {}
        self._uncopied: list[tuple[int, Tensor, Any]] = []
        waiting: list[Any] = list(modules)
        self._sharded = any(is_wrapper(one) or is_sharded_in_place(one) for one in waiting)
        seen: set[int] = set()
        while waiting:
            value = waiting.pop()
            if id(value) not in seen:
                seen.add(id(value))
                try:
                    waiting.extend(self._keep(value))
                except (NotImplementedError, TypeError, AttributeError, LookupError, ValueError):
                    continue  # what cannot even be looked at, such as a generator without a state
        self._copy(earlier)

    def put_back(self) -> None:
        """Put everything back: each object where it was, with what it held. What did not move is not written."""
        failed: list[Exception] = []
        steps: list[Callable[[], object]] = [*self._put_back, partial(_put_back_contents, self._kept.values())]
        for put_back in steps:
            try:  # each of them, whatever the others raise
                put_back()
            except Exception as error:
                failed.append(error)
        if failed:
            raise failed[0]

    def _keep(self, value: Any) -> Iterable[Any]:
        """Record one thing, and return what it holds."""
        if type(value) in (dict, OrderedDict):  # most of what there is
            self._keep_items(value)
            return _looked_into(value.values())
        if isinstance(value, nn.Module):
            return self._keep_module(value)
        if isinstance(value, Tensor):
            return self._keep_tensor(value)
        if isinstance(value, np.ndarray):
            return self._keep_array(value)
        held: Iterable[Any] = ()
        if isinstance(value, dict):
            self._keep_items(value)
            held = _looked_into(value.values())
        elif isinstance(value, (list, deque, set)):
            before = list(value)
            self._put_back.append(partial(put_back_list, value, before))
            held = _looked_into(before)
        elif isinstance(value, (tuple, frozenset)):
            held = _looked_into(value)
        elif isinstance(value, (bytearray, array)):
            self._put_back.append(partial(put_back_list, value, value[:]))
        elif (set_state := generator_put_back(value)) is not None:
            self._put_back.append(set_state)
            return ()
        return held if type(value) in _CONTAINERS else chain(held, self._keep_attributes(value))

    def _keep_items(self, table: dict[Any, Any]) -> None:
        self._put_back.append(partial(put_back_items, table, dict(table)))

    def _keep_module(self, module: nn.Module) -> Iterable[Any]:
        if is_wrapper(module):
            # It prepares itself, its parameters and the types of its buffers in its first forward pass, for good.
            return [*module._modules.values(), *module.parameters(recurse=False), module._buffers]
        table = vars(module)
        self._keep_items(table)
        if isinstance(module, torch.jit.ScriptModule):
            own = [*module.children(), *module.parameters(recurse=False), *module.buffers(recurse=False)]
            return [*_looked_into(table.values()), *own, *self._keep_scripted(module)]
        if self._sharded:  # its parameters may be exchanged for parts of them, and back
            table = {name: value for name, value in table.items() if name != "_parameters"}
            return [*_looked_into(table.values()), *module.parameters(recurse=False)]
        return _looked_into(table.values())

    def _keep_table(self, table: dict[str, Any]) -> Iterable[Any]:
        self._keep_items(table)
        return _looked_into(table.values())

    def _keep_scripted(self, module: torch.jit.ScriptModule) -> list[Any]:
        """The attributes of a scripted module: they are in C++, which gives a copy of all but tensors."""
        kind = getattr(module, "_concrete_type", None)
        names = () if kind is None else [name for name, (_, weight) in kind.get_attributes().items() if not weight]
        held = []
        for name in names:
            value = module._c.getattr(name)
            if value is None or isinstance(value, (torch.ScriptObject, torch.jit.ScriptModule)):
                continue
            self._put_back.append(partial(put_back_scripted, module, name, value))
            held.append(value)
        return held

    def _keep_attributes(self, value: Any) -> Iterable[Any]:
        """The attributes of an object of the user's own."""
        kinds = [kind for kind in type(value).__mro__ if kind.__module__ != "builtins"]
        if not kinds or isinstance(value, (type, ModuleType)) or any(_package(kind) in _FOREIGN for kind in kinds):
            return ()
        table = getattr(value, "__dict__", None)
        slots = {
            name: member
            for kind in kinds
            for name, member in vars(kind).items()
            if type(member).__name__ == "member_descriptor" and type(member).__module__ == "builtins"
        }
        fields = {name: member.__get__(value) for name, member in slots.items() if has_member(member, value)}
        held = [*(table.values() if isinstance(table, dict) else ()), *fields.values()]
        if any(_package(type(item)) in _AT_WORK for item in held):
            return ()
        if slots:
            self._put_back.append(partial(put_back_slots, value, slots, fields))
        return chain(_looked_into(fields.values()), self._keep_table(table) if isinstance(table, dict) else ())

    def _keep_tensor(self, tensor: Tensor) -> Iterable[Any]:
        if tensor.is_nested:  # which has no shape to find it again by
            return ()
        held = list(self._keep_table(vars(tensor)))  # libraries hang their notes on a weight
        if tensor.is_leaf:
            self._put_back.append(partial(put_back_gradient, tensor, tensor.grad, tensor.requires_grad))
        weight = isinstance(tensor, nn.Parameter)
        if not _is_readable(tensor) or (weight and self._sharded):
            return held
        if not weight or self._weights:
            self._uncopied.append((id(tensor), tensor, tensor))
        else:
            self._put_back.append(partial(put_back_memory, tensor, tensor.detach()))
        return held

    def _keep_array(self, values: np.ndarray[Any, Any]) -> Iterable[Any]:
        # What is in a file may be as large as a disk.
        if not values.flags.writeable or isinstance(values, np.memmap):
            return ()
        try:
            self._uncopied.append((id(values), torch.from_numpy(values), values))
        except (TypeError, ValueError):  # of objects, text or records; or backwards in memory
            before = values.copy()
            self._put_back.append(lambda: np.copyto(values, before) if values.shape == before.shape else None)
            return before.ravel().tolist() if before.dtype == object else ()
        return ()

    def _copy(self, earlier: Sequence[State]) -> None:
        """Copy what is in tensors and arrays, as far as an earlier state has no copy of the same."""
        shared: list[tuple[int, _Kept]] = []
        for key, tensor, owner in self._uncopied:
            known = next((state._kept[key] for state in reversed(earlier) if key in state._kept), None)
            if known is not None and known.owner is owner and known.in_place:
                shared.append((key, known))
            else:
                alias = tensor.detach()
                self._kept[key] = _Kept(tensor, alias, [_copy_of(piece) for piece in _pieces(alias)], owner)
        moved = _moved([known for _, known in shared])
        for (key, known), flags in zip(shared, moved, strict=True):
            parts = zip(_pieces(known.alias), known.pieces, flags, strict=True)
            pieces = [_copy_of(piece) if differs else copy for piece, copy, differs in parts]
            self._kept[key] = replace(known, pieces=pieces)
        self._uncopied.clear()


@dataclass(frozen=True, eq=False)
class _Kept:
    """What a tensor was.

    Attributes:
        tensor: the tensor itself, of any shape.
        alias: a view of all of it, which keeps its shape and memory when ``tensor`` is resized or given other memory.
        pieces: copies of the pieces of it.
        owner: whose memory it is: itself, or an array.

    """

    tensor: Tensor
    alias: Tensor
    pieces: Sequence[Tensor]
    owner: Any

    @property
    def in_place(self) -> bool:
        """Whether the tensor still is where it was."""
        return is_in_place(self.tensor, self.alias)

    @property
    def converted(self) -> bool:
        """Whether it has another type or device, which is no write: sharding wrappers do so once, for good."""
        return (self.tensor.dtype, self.tensor.device) != (self.alias.dtype, self.alias.device)


def _is_readable(tensor: Tensor) -> bool:
    """Whether a tensor has memory of its own that can be compared and written."""
    return (
        not is_lazy(tensor)
        and tensor.layout is torch.strided
        and not (tensor.is_meta or tensor.is_quantized or tensor.is_inference())
        and not hasattr(tensor, "__tensor_flatten__")  # a wrapper subclass has no memory of its own
        and not any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    )


def _pieces(tensor: Tensor) -> Sequence[Tensor]:
    """Views of a tensor that make it up, none of them large: what is compared at once is held twice."""
    if tensor.numel() <= _PIECE:
        return [tensor]
    longest = max(range(tensor.ndim), key=lambda axis: tensor.shape[axis])
    return torch.split(tensor, max(1, _PIECE * tensor.shape[longest] // tensor.numel()), longest)


def _copy_of(piece: Tensor) -> Tensor:
    with torch.no_grad():
        try:
            return piece.clone()
        except RuntimeError as error:
            if piece.device.type == "cpu" or not is_out_of_memory(error):
                raise
        return piece.cpu()


def _moved(kept: Sequence[_Kept]) -> list[list[bool]]:
    """Which pieces of tensors that are where they were hold something else than their copies.

    Compared on the device, piece by piece, with one transfer a device. Autograd's count of writes would be no help: it
    misses what is written through ``.data``.
    """
    flags: dict[torch.device, list[Tensor]] = {}
    for entry in kept:
        found = flags.setdefault(entry.alias.device, [])
        for piece, copy in zip(_pieces(entry.alias), entry.pieces, strict=True):
            found.append((bits_of(piece) != bits_of(copy.to(piece.device))).any())
    known = {device: iter(torch.stack(found).tolist()) for device, found in flags.items()}
    return [[next(known[entry.alias.device]) for _ in entry.pieces] for entry in kept]


def _put_back_contents(kept: Iterable[_Kept]) -> None:
    """Put back what was written into tensors and arrays, and touch no others."""
    entries = [entry for entry in kept if not entry.converted]
    with torch.no_grad():
        for entry in entries:
            if not entry.in_place:
                entry.tensor.data = entry.alias
        try:
            moved = _moved(entries)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            moved = [[True] * len(entry.pieces) for entry in entries]  # not even a piece could be compared
        for entry, flags in zip(entries, moved, strict=True):
            for piece, copy, differs in zip(_pieces(entry.tensor.detach()), entry.pieces, flags, strict=True):
                if differs:
                    piece.copy_(copy)


def _looked_into(values: Iterable[Any]) -> Sequence[Any]:
    """Those of the values that can hold something that moves. Quick to say that there are none."""
    kinds = set(map(type, values)) - _ATOMS
    if not kinds:
        return ()
    if kinds == {tuple}:  # such as a data set's pairs of a path and a class
        rows: Iterable[Any] = (value for value in values if type(value) is tuple)
        if set(map(type, chain.from_iterable(rows))) <= _ATOMS:
            return ()
    return [value for value in values if type(value) in kinds]


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]
