"""Leave a model, its gradients and every random generator exactly as they were.

Looking at a model must not change it. Everything that a forward pass can move is recorded on the way in and put back
on the way out, whether the body succeeds or raises.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.utils.checkpoint
from torch import Tensor, nn


@contextmanager
def isolated(model: nn.Module, *, seed: int = 0) -> Iterator[None]:
    """Look at ``model`` inside the body, and find everything as it was behind it.

    Inside, every module is in eval mode, every global generator is seeded with ``seed`` (dropout that ignores the
    training flag then draws the same mask each time), compiled modules run eagerly (a hook added after compilation
    is never called otherwise), reentrant activation checkpointing is off (it refuses :func:`torch.autograd.grad`),
    and inference mode is left (tensors made in it can never take part in autograd). The caller's gradient mode stays:
    who wants gradients under ``no_grad`` says ``torch.enable_grad()``. Autocast and the cuDNN and determinism flags
    stay as well.

    Put back, bit for bit: each module's ``training`` flag, buffers and plain attributes (a model may count its calls
    or keep its last activations), which ``.grad`` each parameter has, and the generators of Python, NumPy and torch.
    Hooks that the body adds and weights that it writes are its own to undo. May be nested.

    Args:
        model: the model, with all of its submodules.
        seed: what the global generators are seeded with inside, from 0 to 2**32 - 1.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
        >>> with isolated(model):
        ...     model.training, torch.equal(model(torch.ones(1, 2)), model(torch.ones(1, 2)))
        (False, True)
        >>> model.training
        True

    """
    with _seeded(seed), _outside_inference_mode(), _uncompiled(), _uncheckpointed(), _unmoved(model):
        yield


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators and put their states back.

    ``torch.manual_seed`` is avoided: where CUDA is not initialised yet it queues the seed for later, and what comes
    later is the user's training.
    """
    with ExitStack() as stack:
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002
        stack.callback(torch.set_rng_state, torch.get_rng_state())
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)
        for backend in (torch.cuda, torch.xpu):
            if backend.is_initialized():
                stack.callback(backend.set_rng_state_all, backend.get_rng_state_all())
                backend.manual_seed_all(seed)
        if torch.backends.mps.is_available():
            stack.callback(torch.mps.set_rng_state, torch.mps.get_rng_state())
            torch.mps.manual_seed(seed)
        yield


@contextmanager
def _outside_inference_mode() -> Iterator[None]:
    if not torch.is_inference_mode_enabled():
        yield
        return
    # Leaving inference mode switches gradients on; the caller's mode is kept.
    with torch.inference_mode(False), torch.set_grad_enabled(False):
        yield


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Run compiled modules eagerly. Nothing is recompiled afterwards."""
    # Where dynamo is not loaded nothing has been compiled, and loading it takes seconds.
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


class _NoCheckpoint:
    """Stands in for ``torch.utils.checkpoint.CheckpointFunction``: calls the function and keeps its activations."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        return function(*args)


@contextmanager
def _uncheckpointed() -> Iterator[None]:
    """Make ``checkpoint(..., use_reentrant=True)`` call its function and nothing else.

    The reentrant kind runs a ``backward()`` of its own inside the outer one. It therefore raises under
    :func:`torch.autograd.grad`, the only way to have a gradient without touching any ``.grad``. It looks its autograd
    function up at each call, so replacing that is enough, whoever imported ``checkpoint`` and how.
    """
    original = torch.utils.checkpoint.CheckpointFunction
    torch.utils.checkpoint.CheckpointFunction = _NoCheckpoint  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        torch.utils.checkpoint.CheckpointFunction = original  # type: ignore[misc]


@contextmanager
def _unmoved(model: nn.Module) -> Iterator[None]:
    """Switch ``model`` to eval and put back flags, buffers, plain attributes and the identity of every ``.grad``."""
    modules = list(model.modules())
    flags = [module.training for module in modules]
    # The dictionaries to put back. A scripted module has none for its buffers: it cannot rebind them either.
    tables = [module.__dict__ for module in modules if not _is_wrapper(module)]
    tables += [module._buffers for module in modules if isinstance(module._buffers, dict)]
    items = [dict(table) for table in tables]
    with torch.no_grad():
        saved = [_Saved(buffer, buffer.detach(), buffer.clone(), buffer._version) for buffer in _writable(model)]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        # One by one, because train() and eval() may be overridden to keep a part as it is.
        for module in modules:
            module.training = False
        yield
    finally:
        for table, before in zip(tables, items, strict=True):
            _restore_items(table, before)
        for module, flag in zip(modules, flags, strict=True):
            if module.training != flag:
                module.training = flag
        _restore_contents(saved)
        for parameter, gradient in gradients:
            if parameter.grad is not gradient:
                parameter.grad = gradient


@dataclass(frozen=True, eq=False)
class _Saved:
    """What a buffer was.

    Attributes:
        buffer: the tensor itself, of any shape.
        alias: a view of all of it, which keeps its shape and storage when ``buffer`` is resized or given another one.
        content: a copy of it.
        version: autograd's count of in-place writes.

    """

    buffer: Tensor
    alias: Tensor
    content: Tensor
    version: int

    @property
    def in_place(self) -> bool:
        """Whether the buffer still is where it was."""
        now, then = self.buffer, self.alias
        return (now.shape, now.stride(), now.data_ptr()) == (then.shape, then.stride(), then.data_ptr())


def _writable(model: nn.Module) -> list[Tensor]:
    """Every buffer with memory of its own that can be compared and written."""
    return [
        buffer
        for buffer in model.buffers()
        if buffer.layout is torch.strided
        and not (buffer.is_meta or buffer.is_quantized or buffer.is_inference())
        and not hasattr(buffer, "__tensor_flatten__")  # a wrapper subclass has no memory of its own
    ]


def _is_wrapper(module: nn.Module) -> bool:
    """Whether a module is a sharding wrapper, which prepares itself in its first forward pass and must stay so."""
    return type(module).__module__.startswith("torch.distributed.")


def _restore_items(now: dict[str, Any], before: dict[str, Any]) -> None:
    """Put the items of a dictionary back: the same objects under the same keys in the same order."""
    if len(now) == len(before) and all(a == b and now[a] is before[b] for a, b in zip(now, before, strict=True)):
        return
    for key in list(now):
        del now[key]
    for key, value in before.items():
        now[key] = value


def _restore_contents(saved: list[_Saved]) -> None:
    """Put back what was written into buffers, and touch no other.

    Version counters miss what is written through ``.data``, so contents are compared too: on the device, with one
    transfer a device.
    """
    moved: list[_Saved] = []
    unwritten: dict[torch.device, list[_Saved]] = {}
    for entry in saved:
        if (entry.buffer.dtype, entry.buffer.device) != (entry.alias.dtype, entry.alias.device):
            continue  # not a write: a sharding wrapper converts buffers in place, once, in its first forward pass
        if entry.buffer._version == entry.version and entry.in_place:
            unwritten.setdefault(entry.buffer.device, []).append(entry)
        else:
            moved.append(entry)
    for entries in unwritten.values():
        differs = torch.stack([(_bits(entry.buffer) != _bits(entry.content)).any() for entry in entries]).tolist()
        moved += [entry for entry, different in zip(entries, differs, strict=True) if different]
    with torch.no_grad():
        for entry in moved:
            if not entry.in_place:
                entry.buffer.data = entry.alias
            entry.buffer.copy_(entry.content)


def _bits(tensor: Tensor) -> Tensor:
    """The values of ``tensor`` as integers: equal exactly where every bit is, NaN and minus zero included."""
    tensor = torch.view_as_real(tensor.detach().resolve_conj()) if tensor.is_complex() else tensor.detach()
    return tensor.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
