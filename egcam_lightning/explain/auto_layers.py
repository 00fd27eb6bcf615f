"""Which layers ``target_layer="auto"`` takes: the last cut of the network, and an earlier one that sees finer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from egcam_lightning.explain.candidates import Candidate
from egcam_lightning.explain.gradient import gradient_at
from egcam_lightning.explain.sharding import whole
from egcam_lightning.explain.split_model import Forward, SplitModel, first_tensor, host_image_like

_MIN_SIDE = 4
# A grid of as many cells a side shows details by itself; one of 7x7, as most networks end with, does not.
_FINE_SIDE = 13


def auto_layers(
    candidates: Sequence[Candidate],
    forward: Forward,
    images: Tensor,
    head: nn.Module | None,
    *,
    several: bool,
) -> list[Candidate]:
    """Choose the layers for ``"auto"`` and ``"last"``, from the architecture alone.

    Complete maps can be added up: at every cut of the network they sum to the same difference of scores, so their mean
    over layers is complete as well. It sees coarse and fine, and errors of one layer cancel. ``"auto"`` takes

    - of a convolutional network the last cut with a grid of at least 4x4 that is no pooling layer and on whose
      positions the output depends, and, where that grid has fewer than 13 cells a side, the deepest cut of the stage
      before it (14x14 beside 7x7 at 224x224; 16x16 beside 8x8 in a ResNet for 32x32);
    - of a vision transformer that reads its class token, which gathers the evidence in a place that no map shows, the
      blocks at a quarter and at three quarters of the way;
    - one layer where there are no two, and where maps are not complete (Grad-CAM and its like, whose mean over layers
      is worse than one of them).

    ``"last"`` takes the last cut alone, and of such a transformer the block at a quarter of the way.

    Measured on pretrained networks and photographs (insertion - deletion, infidelity, completeness gap, pooled; 32
    samples, of 8 baselines; difference to Grad-CAM at its best layer, paired over the images, with its standard error,
    or for the ResNet-20 to the first row):

    ===============  ======  =============================  =========  ==========  =====  ===============
    network          images  layers                         ins - del  infidelity  gap    difference
    ===============  ======  =============================  =========  ==========  =====  ===============
    MobileNetV2      200     features, Grad-CAM             0.352      0.496       none
    .                .       features.14.conv.0 + features  0.445      0.460       0.036  0.093 +- 0.009
    DeiT-Ti          100     norm1, Grad-CAM                0.334      0.826       none
    .                .       blocks.2 + blocks.9            0.400      0.380       0.061  0.066 +- 0.011
    ResNet-50        23      layer4, Grad-CAM               0.438      0.333       none
    .                .       layer3 + layer4                0.458      0.304       0.022  0.020 +- 0.023
    CIFAR ResNet-20  150     layer3                         0.401      0.453       0.000
    .                .       layer2                         0.460      0.449       0.077  0.060 +- 0.022
    .                .       layer2 + layer3                0.476      0.422       0.025  0.075 +- 0.019
    ===============  ======  =============================  =========  ==========  =====  ===============

    Args:
        candidates: the modules that might serve, in the order in which they finish.
        forward: from images to the output that is explained.
        images: ``(n, C, H, W)``, two to four are enough.
        head: the module in front of an output that does not vary over the images yet, see
            :func:`~egcam_lightning.explain.candidates.observe`.
        several: whether the mean over two layers is wanted, where there are two.

    Returns:
        One layer or two, in the order in which they finish.

    """
    serves = partial(_serves, forward if head is None else _input_of(head, forward), images, host_image_like(images))
    wide = [c for c in candidates if min(c.layout.grid) >= _MIN_SIDE]
    # Of equal grids the deepest: sorting keeps the order.
    narrow = sorted((c for c in reversed(candidates) if c not in wide), key=lambda c: -_cells(c))
    for candidate in [*reversed(wide), *narrow]:
        if serves(candidate):
            break
    else:
        last = wide[-1] if wide else narrow[0]
        warnings.warn(
            f"No layer was found that nothing bypasses (or the model's output is constant so far); taking the last one "
            f"with a grid, {last}. Pass `target_layer` to choose.",
            stacklevel=2,
        )
        return [last]
    if candidate in narrow:
        warnings.warn(
            f"No layer that nothing bypasses has a grid of {_MIN_SIDE}x{_MIN_SIDE}; taking {candidate}, the "
            "largest there is. Maps will be coarse: use larger images or pass `target_layer`.",
            stacklevel=2,
        )
    blocks = _stack_of(candidate, candidates)
    # The patches themselves are read behind the last block, unless it is a class token that is.
    if candidate.layout.prefix and candidate is not blocks[-1]:
        first, later = (len(blocks) - 1) // 4, 3 * len(blocks) // 4
        until = blocks.index(candidate)
        early = next(filter(serves, blocks[first:until]), candidate)
        late = next(filter(serves, blocks[later:until]), candidate) if several else early
        return [early] if late is early else [early, late]
    finer = [] if not several or min(candidate.layout.grid) >= _FINE_SIDE else _finer(candidate, candidates)
    return [*filter(None, [next(filter(serves, finer), None)]), candidate]


def deepest_of_side(candidates: Sequence[Candidate], forward: Forward, images: Tensor, side: int) -> Candidate | None:
    """The last layer that serves and has so many cells a side, in a network without a class token.

    Args:
        candidates: the modules that might serve, in the order in which they finish.
        forward: from images to the output that is explained.
        images: ``(n, C, H, W)``, two to four are enough.
        side: how many cells its grid has a side, at least.

    Returns:
        The layer, or ``None`` where there is none.

    """
    wide = [c for c in reversed(candidates) if min(c.layout.grid) >= side and not c.layout.prefix]
    return next(filter(partial(_serves, forward, images, host_image_like(images)), wide), None)


def _finer(last: Candidate, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The layers of the stage before that of ``last``, whose grid is finer, from the deepest on."""
    before = [c for c in candidates[: candidates.index(last)] if _cells(c) > _cells(last)]
    return [c for c in reversed(before) if c.layout.grid == before[-1].layout.grid]


def _stack_of(block: Candidate, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The blocks of a transformer, those that lie beside ``block`` and are like it."""
    stack = block.name.rpartition(".")[0]
    return [
        c
        for c in candidates
        if c.name.rpartition(".")[0] == stack and c.shape == block.shape and type(c.module) is type(block.module)
    ]


def _input_of(head: nn.Module, forward: Forward) -> Forward:
    """The model up to what ``head`` is given, which tells images apart where the output does not yet."""

    def run(images: Tensor) -> Tensor | None:
        seen: list[Tensor | None] = []
        handle = head.register_forward_pre_hook(lambda _module, inputs: seen.append(first_tensor(inputs)))
        try:
            forward(images)
        finally:
            handle.remove()
        return None if seen[-1] is None else whole(seen[-1])

    return run


def _serves(forward: Forward, images: Tensor, host_image: Tensor, candidate: Candidate) -> bool:
    """Whether a layer is a cut, and the output depends on positions that have a place on the image."""
    cut = SplitModel(candidate.module, candidate.name, forward, candidate.axis)
    activation, output = cut.capture(images)
    if not cut.holds(activation, output, host_image):
        return False
    with torch.enable_grad():
        leaf, output = cut.from_points(activation, host_image)
        gradient = gradient_at(leaf, output.float().square())
    return gradient is not None and bool(candidate.layout.to_grid(gradient).any())


def _cells(candidate: Candidate) -> int:
    return math.prod(candidate.layout.grid)
