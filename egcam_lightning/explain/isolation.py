"""Leave a model, its gradients and every random generator exactly as they were.

Looking at a model must not change it. Everything that a forward pass can move is recorded on the way in and put back
on the way out, whether the body succeeds or raises.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn.parameter import is_lazy

from egcam_lightning.explain.module_state import State


@contextmanager
def isolated(model: nn.Module, *, seed: int = 0, weights: bool = False) -> Iterator[None]:
    """Look at ``model`` inside the body, and find everything as it was behind it.

    Inside, every module is in eval mode, every global generator is seeded with ``seed`` (dropout that ignores the
    training flag then draws the same mask each time), compiled modules run eagerly (a hook added after compilation
    is never called otherwise), reentrant activation checkpointing is off (it refuses :func:`torch.autograd.grad`),
    inference mode is left (tensors made in it can never take part in autograd), and scripted code runs as it is
    written. The caller's gradient mode stays: who wants gradients under ``no_grad`` says ``torch.enable_grad()``.
    Autocast and the cuDNN and determinism flags stay as well.

    Put back, bit for bit: each module's ``training`` flag, buffers and attributes with all that these hold (a model may
    count its calls in a meter, append to a list, update a metric, keep its last activations; see
    :class:`~egcam_lightning.explain.module_state.State`), which ``.grad`` each parameter has, and the generators of
    Python, NumPy and torch. May be nested: buffers are copied once for all.

    What is written into weights is put back where ``weights`` is set, which takes a copy of those that are trained:
    networks that bound the norm of their weights in ``forward`` write into them in each pass.

    This is done on the model itself rather than on a copy that shares its weights. Many models cannot be copied or are
    too large to be, a copy shares what must not move all the same (a list in a closure, a module that is called through
    a reference to the original), and a layer or ``forward_fn`` that the user names belongs to the model that he has.

    Args:
        model: the model, with all of its submodules.
        seed: what the global generators are seeded with inside, from 0 to 2**32 - 1.
        weights: whether to put back what is written into weights that are trained.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
        >>> with isolated(model):
        ...     model.training, torch.equal(model(torch.ones(1, 2)), model(torch.ones(1, 2)))
        (False, True)
        >>> model.training
        True

    """
    with (
        _seeded(seed),
        _outside_inference_mode(),
        _uncompiled(),
        _unprofiled(),
        _uncheckpointed(),
        _unmoved(model, weights),
    ):
        yield


def uninitialised(model: nn.Module) -> str | None:
    """The first of a model's parameters and buffers that has no values yet, as in ``nn.LazyLinear``; or ``None``.

    The model's first forward pass makes them. No other pass can be undone before that one.
    """
    named = chain(model.named_parameters(), model.named_buffers())
    return next((name for name, tensor in named if is_lazy(tensor)), None)


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
    """Run compiled modules eagerly. Nothing is compiled inside, nor again afterwards.

    The stance ``"eager_on_recompile"`` would use compiled code wherever it fits an input. It is not taken:

    - hooks are not guarded, so that such code runs past the layer without calling ours, and nobody is told;
    - code that takes gradients at a layer is none that training or validation have had compiled, and compiling some
      counts against the limit past which training itself turns eager, for good;
    - passes without gradients and hooks, which metrics make, could use it where the number of images is the
      validation's. Then a value would depend on what happens to be compiled so far, to the rounding of fused kernels,
      and be another in a resumed run.
    """
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


_open: list[State] = []  # of the isolations that have begun, outermost first


@contextmanager
def _unmoved(model: nn.Module, weights: bool) -> Iterator[None]:
    """Switch ``model`` to eval; put back its flags, and all that its modules hold."""
    modules = list(model.modules())
    flags = [(module, module.training) for module in modules if hasattr(module, "training")]  # a frozen one has none
    state = State(modules, _open, weights=weights)
    _open.append(state)
    try:
        # One by one, because train() and eval() may be overridden to keep a part as it is.
        for module, _ in flags:
            module.training = False
        yield
    finally:
        _open.remove(state)
        try:
            state.put_back()
        finally:
            for module, flag in flags:
                if module.training != flag:
                    module.training = flag


@contextmanager
def _unprofiled() -> Iterator[None]:
    """Run scripted code as it is written.

    Its first calls are what it is optimised by, for good: were ours among them, training would go on with other code.
    """
    with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        yield
