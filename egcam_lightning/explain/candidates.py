"""What one forward pass shows of a model: the modules whose output has a grid, any of which may be the target layer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from egcam_lightning.explain.scores import check_rows
from egcam_lightning.explain.sharding import own_part
from egcam_lightning.explain.split_model import (
    Forward,
    can_be_hooked,
    first_tensor,
    hooked,
    varies,
)
from egcam_lightning.explain.token_layout import Layout, infer_layout

_POOLING = (
    *(getattr(nn, f"{kind}Pool{n}d") for kind in ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg", "LP") for n in (1, 2, 3)),
    nn.FractionalMaxPool2d,
    nn.FractionalMaxPool3d,
)


# A padded grid reaches beyond the image.
_PADDING = (
    nn.modules.padding._CircularPadNd,
    nn.modules.padding._ConstantPadNd,
    nn.modules.padding._ReflectionPadNd,
    nn.modules.padding._ReplicationPadNd,
)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A module whose output has a grid, as one forward pass saw it."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]
    layout: Layout
    tensor: int  # the identity of its output, which a block and the container around it share
    axis: int = 0  # of its output, that has a row per image

    def __str__(self) -> str:
        return f"{self.name} {self.shape}"


def clean_name(name: str) -> str:
    """A module's name without what ``torch.compile`` puts into it."""
    return name.replace("_orig_mod.", "").replace("._orig_mod", "")


def rows_axis(tensor: Tensor, count: int) -> int | None:
    """Which dimension has a row for each of ``count`` images: the first, or the second of a sequence, or ``None``."""
    if tensor.shape[:1] == (count,):
        return 0
    return 1 if tensor.ndim == 3 and tensor.shape[1] == count else None


def observe(model: nn.Module, forward: Forward, images: Tensor) -> tuple[list[Candidate], nn.Module | None, str]:
    """Run the model once and list the modules that might serve, in the order in which they finish.

    Modules that only hand on what they were given are left out. Where several return the same tensor (a block and the
    container around it) all are listed, outermost last: a container that returns more besides may be no cut.

    Returns:
        The candidates; the *head*: the last module whose input varies over the images while its output
        does not, as that of a layer initialised to zero, ``None`` where the logits vary; and, where a layer with a grid
        is no candidate since it is not called once with a row per image, a sentence's part that says so.

    """
    # By identity: what a torchmetrics.Metric is equal to, and its hash, move with what it has seen.
    outputs: dict[int, list[Any]] = {}
    passed_on: set[int] = set()
    head: nn.Module | None = None

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal head
        tensor = first_tensor(output)
        outputs.setdefault(id(module), []).append(tensor)
        given = first_tensor(inputs)
        if _passes_on(module, given, tensor):
            passed_on.add(id(module))
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) and given is not None and varies(given):
            head = None if tensor is not None and varies(tensor) else module

    modules = {id(module): (clean_name(name), module) for name, module in model.named_modules()}
    with ExitStack() as stack:
        for _, module in modules.values():
            if can_be_hooked(module):
                stack.enter_context(hooked(module, hook))
        with torch.no_grad():
            logits = forward(images)
    check_rows(logits, len(images))
    pooled = {id(t) for key, ts in outputs.items() if isinstance(modules[key][1], _POOLING) for t in ts}
    features: list[Candidate] = []
    class_maps: list[Candidate] = []
    obstacle = ""
    # A module enters `outputs` when it *first* finishes; only those called once are kept, so the order is right.
    classes = logits.shape[1] if logits.ndim > 1 else None
    for key, tensors in outputs.items():
        (name, module), tensor = modules[key], tensors[0]
        if tensor is None or not name or key in passed_on or isinstance(module, _PADDING):
            continue
        if id(tensor) in pooled or tensor is logits or not tensor.is_floating_point() or tensor.ndim < 3:
            continue
        axis = rows_axis(tensor, len(images))
        activation = tensor.movedim(axis or 0, 0)
        layout = infer_layout(activation.shape[1:], images.shape[2:])
        if layout is None or max(layout.grid) == 1:
            continue
        if len(tensors) != 1 or axis is None:
            seen = f"called {len(tensors)} times" if len(tensors) != 1 else f"of shape {tuple(tensor.shape)}"
            obstacle = f"{name!r} is {seen} for {len(images)} images"
            continue
        # A map a class is the model's own output before it is pooled or resized: only where there is nothing else.
        found = class_maps if layout.to_grid(activation).shape[1] == classes else features
        found.append(Candidate(name, module, tuple(activation.shape[1:]), layout, id(tensor), axis))
    return features or class_maps, head, obstacle


def outermost(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Of candidates that share an output (a block and the container around it) the outermost."""
    found: dict[int, Candidate] = {}
    for candidate in candidates:
        found.pop(candidate.tensor, None)
        found[candidate.tensor] = candidate
    return list(found.values())


def _passes_on(module: nn.Module, given: Tensor | None, output: Tensor | None) -> bool:
    """Whether a module only hands on what it was given: an identity, dropout in evaluation, another order of axes."""
    if given is None or output is None or next(module.parameters(), None) is not None:
        return False
    unchanged = isinstance(module, nn.modules.dropout._DropoutNd) or not getattr(module, "inplace", False)
    return unchanged and own_part(output).data_ptr() == own_part(given).data_ptr() and output.numel() == given.numel()
