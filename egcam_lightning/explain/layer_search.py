"""Finding the target layer: by name, as a module, or by looking for the last cut of the network."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from egcam_lightning.explain.candidates import Candidate, clean_name, observe, rows_axis
from egcam_lightning.explain.gradient import gradient_at
from egcam_lightning.explain.split_model import (
    Forward,
    SplitModel,
    can_be_hooked,
    first_tensor,
    host_image_like,
    varies,
)
from egcam_lightning.explain.token_layout import Layout, infer_layout

_MIN_SIDE = 4

_ONE_COPY = (
    "So it is where a model runs several copies or parts of an image itself (test-time augmentation, windows, crops)."
)


def find_layer(
    model: nn.Module,
    forward: Forward,
    images: Tensor,
    target_layer: str | nn.Module = "auto",
    reshape_transform: Callable[[Tensor], Tensor] | None = None,
) -> tuple[SplitModel, Layout]:
    """Resolve the target layer, and how its activation lies on the image.

    ``"auto"`` runs the model once and takes the last *cut* of the network (a layer that nothing bypasses) whose
    output has a grid of at least 4x4, that is no pooling layer, and on whose positions the output depends.

    A vision transformer that reads its class token has a cut behind every block, and moves the evidence from the
    patches to that token, which has no place on the image, on the way. So there it is the block a quarter of the way
    in. Measured on a transformer of 12 blocks, trained until it reads digits in one quadrant of noise (64 images, 98 %
    right, 32 draws); share and first: of the attribution in the digit's quadrant (a uniform map has 0.25), and for how
    many images that quadrant has most:

    ============  ====  ==========  =====  =====  ========
    cut behind    gap   infidelity  share  first  off grid
    ============  ====  ==========  =====  =====  ========
    patches       0.27  0.38        0.64   1.00   0.00
    block 1       0.21  0.40        0.63   0.94   0.33
    block 2       0.17  0.43        0.57   0.92   0.48
    block 3       0.12  0.47        0.54   0.83   0.60
    block 4       0.10  0.54        0.50   0.77   0.71
    block 5       0.08  0.60        0.44   0.70   0.82
    block 6       0.07  0.58        0.43   0.67   0.87
    block 7       0.06  0.57        0.43   0.66   0.90
    block 8       0.05  0.69        0.37   0.53   0.94
    block 9       0.05  0.68        0.38   0.61   0.96
    block 10      0.04  0.76        0.36   0.52   0.98
    block 11      0.04  0.79        0.35   0.55   0.99
    block 12      0.04  1.00        none   none   1.00
    its norm1     1.00  0.87        0.36   0.58   no cut
    ============  ====  ==========  =====  =====  ========

    Draws close the gap (128 of them: 0.04 behind block 3), but bring no evidence back to its place. With random weights
    the map is in place behind blocks 3 and 11 alike. A network trained on more than digits may keep its evidence in the
    patches for longer: pass a later block as ``target_layer`` where its share off the grid is small.

    Args:
        model: where names are looked up.
        forward: from images to the output that is explained.
        images: ``(n, C, H, W)``, two to four are enough.
        target_layer: ``"auto"``, a module's name, or a module of ``model``.
        reshape_transform: from the layer's activation to ``(N, K, h, w)``, where the layout cannot be inferred.

    Returns:
        The layer and its layout.

    Raises:
        ValueError: for a name or module that the model does not have, a layer that is scripted, is not called exactly
            once or has no grid; the message lists the layers that would do. For an output without a row for each image.

    """
    candidates, head, obstacle = observe(model, forward, images)
    if isinstance(target_layer, str) and target_layer == "auto":
        if obstacle and not candidates:
            raise ValueError(
                "Expected a layer with a grid over the image that one forward pass calls once, with a row per image, "
                f"but {obstacle}. {_ONE_COPY} Pass a `forward_fn` that runs the network once on the images as they "
                "are, such as `lambda model, images: model.network(images)`."
            )
        return _last_cut(candidates, forward, images, head)
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
    return cut, _layout_of(activation.movedim(axis, 0), images, name, reshape_transform)


def _layout_of(activation: Tensor, images: Tensor, name: str, transform: Callable[[Tensor], Tensor] | None) -> Layout:
    size = images.shape[2:]
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
    layout = infer_layout(activation.shape[1:], size)
    if layout is None:
        raise ValueError(
            f"The output of layer {name!r} has the shape {tuple(activation.shape)}, from which no grid over an image "
            f"of {tuple(size)} can be read. Pass `reshape_transform`, a function from this shape to (images, channels, "
            "height, width), or another `target_layer`."
        )
    return layout


def _resolve(model: nn.Module, target: str | nn.Module, candidates: Sequence[Candidate]) -> tuple[str, nn.Module]:
    modules = {clean_name(name): module for name, module in model.named_modules() if name}
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
    outermost: dict[int, Candidate] = {}
    for candidate in candidates:
        outermost.pop(candidate.tensor, None)
        outermost[candidate.tensor] = candidate
    shown = [str(candidate) for candidate in list(outermost.values())[-12:]]
    return f"Layers with a grid, the last ones of {len(outermost)}: {', '.join(shown)}." if shown else ""


def _input_of(head: nn.Module, forward: Forward) -> Forward:
    """The model up to what ``head`` is given, which tells images apart where the output does not yet."""

    def run(images: Tensor) -> Tensor | None:
        seen: list[Tensor | None] = []
        handle = head.register_forward_pre_hook(lambda _module, inputs: seen.append(first_tensor(inputs)))
        try:
            forward(images)
        finally:
            handle.remove()
        return seen[-1]

    return run


def _last_cut(
    candidates: Sequence[Candidate],
    forward: Forward,
    images: Tensor,
    head: nn.Module | None,
) -> tuple[SplitModel, Layout]:
    if not candidates:
        raise ValueError(
            "No layer of the model has an output with a grid over the image. Pass `target_layer`, and "
            "`reshape_transform` where its output is laid out in a way of its own."
        )
    wide = [c for c in candidates if min(c.layout.grid) >= _MIN_SIDE]
    # Of equal grids the deepest, as above: sorting keeps the order.
    narrow = sorted((c for c in reversed(candidates) if c not in wide), key=lambda c: -_cells(c))
    host_image = host_image_like(images)
    evidence = forward if head is None else _input_of(head, forward)

    def serves(candidate: Candidate) -> bool:
        cut = SplitModel(candidate.module, candidate.name, evidence, candidate.axis)
        return _serves(cut, candidate.layout, images, host_image)

    for candidate in [*reversed(wide), *narrow]:
        if serves(candidate):
            if candidate in narrow:
                warnings.warn(
                    f"No layer that nothing bypasses has a grid of {_MIN_SIDE}x{_MIN_SIDE}; taking {candidate}, the "
                    "largest there is. Maps will be coarse: use larger images or pass `target_layer`.",
                    stacklevel=2,
                )
            chosen = _early_block(candidate, candidates, serves)
            return SplitModel(chosen.module, chosen.name, forward, chosen.axis), chosen.layout
    last = wide[-1] if wide else narrow[0]
    warnings.warn(
        f"No layer was found that nothing bypasses (or the model's output is constant so far); taking the last one "
        f"with a grid, {last}. Pass `target_layer` to choose.",
        stacklevel=2,
    )
    return SplitModel(last.module, last.name, forward, last.axis), last.layout


def _early_block(last: Candidate, candidates: Sequence[Candidate], serves: Callable[[Candidate], bool]) -> Candidate:
    """Of a transformer that reads its class token, the block a quarter of the way in: see :func:`find_layer`."""
    stack = last.name.rpartition(".")[0]
    blocks = [
        c
        for c in candidates
        if c.name.rpartition(".")[0] == stack and c.shape == last.shape and type(c.module) is type(last.module)
    ]
    if not last.layout.prefix or last is blocks[-1]:  # the patches themselves are read behind the last block
        return last
    return next(filter(serves, blocks[(len(blocks) - 1) // 4 : blocks.index(last)]), last)


def _serves(cut: SplitModel, layout: Layout, images: Tensor, host_image: Tensor) -> bool:
    """Whether the layer is a cut, and the output depends on positions that have a place on the image."""
    activation, output = cut.capture(images)
    if not cut.holds(activation, output, host_image):
        return False
    with torch.enable_grad():
        leaf, output = cut.from_points(activation, host_image)
        gradient = gradient_at(leaf, output.float().square())
    return gradient is not None and bool(layout.to_grid(gradient).any())


def _cells(candidate: Candidate) -> int:
    cells = 1
    for side in candidate.layout.grid:
        cells *= side
    return cells


def telling_sample(images: Tensor, chunk_size: int | None = None) -> tuple[Tensor, Tensor]:
    """A few of the images to look for a layer with, and their rows; an image and noise where all are the same.

    Whether a layer is a cut shows only where outputs differ.
    """
    sample = images[: max(2, min(4, chunk_size or 4))].detach()
    if varies(sample):
        return sample, torch.arange(len(sample))
    return torch.cat([sample[:1], host_image_like(sample, seed=1)]), torch.zeros(2).long()
