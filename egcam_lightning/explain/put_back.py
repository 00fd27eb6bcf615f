"""Putting one value back: what it held, in place, and nothing that has not moved."""

from __future__ import annotations

import random
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from functools import partial
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor


def is_in_place(now: Tensor, then: Tensor) -> bool:
    """Whether a tensor is where another was."""
    return (now.shape, now.stride(), now.data_ptr()) == (then.shape, then.stride(), then.data_ptr())


def has_member(member: Any, value: Any) -> bool:
    """Whether an object has a value in one of its slots."""
    try:
        member.__get__(value)
    except AttributeError:
        return False
    return True


def bits_of(tensor: Tensor) -> Tensor:
    """The values of ``tensor`` as integers: equal exactly where every bit is, NaN and minus zero included."""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return tensor.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def put_back_memory(parameter: Tensor, alias: Tensor) -> None:
    """Give a parameter the memory back that it had."""
    if (parameter.dtype, parameter.device) == (alias.dtype, alias.device) and not is_in_place(parameter, alias):
        parameter.data = alias


def put_back_gradient(tensor: Tensor, gradient: Tensor | None, required: bool) -> None:
    """Give a tensor the gradient, and the wish for one, back that it had."""
    if tensor.is_leaf and tensor.requires_grad != required:
        tensor.requires_grad_(required)
    if tensor.is_leaf and tensor.grad is not gradient:
        tensor.grad = gradient


def put_back_items(now: dict[Any, Any], before: dict[Any, Any]) -> None:
    """Put the items of a dictionary back: the same objects under the same keys in the same order."""
    # Not by a method of the user's own, which may make values up, or raise.
    values = now.values() if isinstance(now, OrderedDict) else dict.values(now)
    if not (now or before) or (_same(now, before) and _same(values, before.values())):
        return
    kind: Any = OrderedDict if isinstance(now, OrderedDict) else dict  # a class of the user's may refuse to be written
    kind.clear(now)
    for key, value in before.items():
        kind.__setitem__(now, key, value)


def put_back_list(now: Any, before: Any) -> None:
    """Put the members of a list, deque, set or array of numbers back."""
    if isinstance(now, (bytearray, array)):
        if now != before:
            now[:] = before
    elif isinstance(now, set):
        if set(map(id, now)) != set(map(id, before)):
            set.clear(now)
            set.update(now, before)
    elif not _same(now, before):
        kind: Any = deque if isinstance(now, deque) else list
        kind.clear(now)
        kind.extend(now, before)


def put_back_slots(value: Any, slots: dict[str, Any], before: dict[str, Any]) -> None:
    """Put the values of an object's slots back."""
    for name, member in slots.items():
        if not has_member(member, value):
            if name in before:
                member.__set__(value, before[name])
        elif name not in before:
            member.__delete__(value)
        elif member.__get__(value) is not before[name]:
            member.__set__(value, before[name])


def _same(now: Collection[Any], before: Collection[Any]) -> bool:
    """Whether two collections hold the same objects in the same order."""
    return len(now) == len(before) and all(map(is_, now, before))


def put_back_scripted(module: torch.jit.ScriptModule, name: str, before: Any) -> None:
    """Put an attribute of a scripted module back."""
    if not isinstance(before, Tensor) or module._c.getattr(name) is not before:
        module._c.setattr(name, before)


def generator_put_back(value: Any) -> Callable[[], object] | None:
    """What puts a generator of random numbers back; ``None`` for anything else."""
    if isinstance(value, torch.Generator):
        return partial(value.set_state, value.get_state())
    if isinstance(value, np.random.Generator):
        return partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return partial(value.set_state, value.get_state())
    if isinstance(value, random.Random):
        return partial(value.setstate, value.getstate())
    return None
