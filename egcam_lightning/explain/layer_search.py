"""Finding the target layer: by name, as a module, or by looking for the cuts of the network that serve best."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from egcam_lightning.explain.auto_layers import auto_layers
from egcam_lightning.explain.candidates import Candidate, clean_name, observe, outermost, rows_axis
from egcam_lightning.explain.split_model import (
    Forward,
    SplitModel,
    can_be_hooked,
    host_image_like,
    varies,
)
from egcam_lightning.explain.token_layout import Layout, infer_layout

_ONE_COPY = (
    "So it is where a model runs several copies or parts of an image itself (test-time augmentation, windows, crops)."
)


def find_layers(
    model: nn.Module,
    forward: Forward,
    images: Tensor,
    target_layer: str | nn.Module = "auto",
    reshape_transform: Callable[[Tensor], Tensor] | None = None,
    *,
    several: bool = True,
) -> list[tuple[SplitModel, Layout]]:
    """Resolve the target layer, and how its activation lies on the image.

    Args:
        model: where names are looked up.
        forward: from images to the output that is explained.
        images: ``(n, C, H, W)``, two to four are enough.
        target_layer: ``"auto"`` or ``"last"`` (see :func:`~egcam_lightning.explain.auto_layers.auto_layers`), a
            module's name, or a module of ``model``.
        reshape_transform: from the layer's activation to ``(N, K, h, w)``, where the layout cannot be inferred.
        several: whether ``"auto"`` may take two layers.

    Returns:
        The layer and its layout; for ``"auto"`` two of them where the network has two that serve.

    Raises:
        ValueError: for a name or module that the model does not have, a layer that is scripted, is not called exactly
            once or has no grid; the message lists the layers that would do. For an output without a row for each image.

    """
    candidates, head, obstacle = observe(model, forward, images)
    if target_layer == "auto" or (target_layer == "last" and "last" not in _names(model)):
        if obstacle and not candidates:
            raise ValueError(
                "Expected a layer with a grid over the image that one forward pass calls once, with a row per image, "
                f"but {obstacle}. {_ONE_COPY} Pass a `forward_fn` that runs the network once on the images as they "
                "are, such as `lambda model, images: model.network(images)`."
            )
        if not candidates:
            raise ValueError(
                "No layer of the model has an output with a grid over the image. Pass `target_layer`, and "
                "`reshape_transform` where its output is laid out in a way of its own."
            )
        found = auto_layers(candidates, forward, images, head, several=several and target_layer == "auto")
        return [(SplitModel(c.module, c.name, forward, c.axis), c.layout) for c in found]
    name, module = _resolve(model, target_layer, candidates)
    if not can_be_hooked(module):
        raise ValueError(
            f"The layer {name!r} is scripted: what it computes cannot be replaced by other values. Pass another "
            f"`target_layer`, or leave this one unscripted. {_choices(candidates)}"
        )
    cut = SplitModel(module, name, forward)
    activation, _ = cut.capture(images)
    axis = rows_axis(activation, len(images))
    if axis is None:
        raise ValueError(
            f"Expected the output of layer {name!r} to have a row for each of {len(images)} images, but its shape is "
            f"{tuple(activation.shape)}. {_ONE_COPY} Pass a `target_layer` of which this is not so, or a `forward_fn` "
            "that runs the network on the images as they are, such as `lambda model, images: model.network(images)`."
        )
    cut = SplitModel(module, name, forward, axis)
    activation = activation.movedim(axis, 0)
    layout = _layout_of(activation, images, reshape_transform)
    if layout is None:
        raise ValueError(
            f"The output of layer {name!r} has the shape {tuple(activation.shape)}, from which no grid over an image "
            f"of {tuple(images.shape[2:])} can be read. Pass another `target_layer`; or, where it has one, "
            "`reshape_transform`, a function from this shape to (images, channels, height, width). "
            f"{_choices(candidates)}"
        )
    return [(cut, layout)]


def _layout_of(activation: Tensor, images: Tensor, transform: Callable[[Tensor], Tensor] | None) -> Layout | None:
    """How an activation lies on the images; ``None`` where that cannot be told."""
    if transform is not None:
        placed = transform(activation)
        if not isinstance(placed, Tensor) or placed.ndim != images.ndim or len(placed) != len(activation):
            shape = tuple(placed.shape) if isinstance(placed, Tensor) else type(placed).__name__
            raise ValueError(
                f"Expected `reshape_transform` to give {images.ndim} dimensions (images, channels, *grid), but from "
                f"{tuple(activation.shape)} it made {shape}."
            )
        # Which dimension holds the channels matters to noise, whose unit is a deviation over positions.
        channels_last = placed.shape[1] not in activation.shape[1:2]
        return Layout(tuple(placed.shape[2:]), channels_last, transform=transform)
    return infer_layout(activation.shape[1:], images.shape[2:])


def _names(model: nn.Module) -> dict[str, nn.Module]:
    return {clean_name(name): module for name, module in model.named_modules() if name}


def _resolve(model: nn.Module, target: str | nn.Module, candidates: Sequence[Candidate]) -> tuple[str, nn.Module]:
    modules = _names(model)
    if isinstance(target, nn.Module):
        for name, module in modules.items():
            if module is target:
                return name, module
        raise ValueError(
            f"The `target_layer` {type(target).__name__} is not a module of the model. {_choices(candidates)}"
        )
    name = clean_name(target)
    if name in modules:
        return name, modules[name]
    close = difflib.get_close_matches(name, modules, n=3, cutoff=0.4)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise ValueError(f"The model has no layer {target!r}.{hint} {_choices(candidates)}")


def _choices(candidates: Sequence[Candidate]) -> str:
    distinct = outermost(candidates)
    shown = [str(candidate) for candidate in distinct[-12:]]
    return f"Layers with a grid, the last ones of {len(distinct)}: {', '.join(shown)}." if shown else ""


def telling_sample(images: Tensor, chunk_size: int | None = None) -> tuple[Tensor, Tensor]:
    """A few of the images to look for a layer with, and their rows; an image and noise where all are the same.

    Whether a layer is a cut shows only where outputs differ.
    """
    sample = images[: max(2, min(4, chunk_size or 4))].detach()
    if varies(sample):
        return sample, torch.arange(len(sample))
    return torch.cat([sample[:1], host_image_like(sample, seed=1)]), torch.zeros(2).long()
