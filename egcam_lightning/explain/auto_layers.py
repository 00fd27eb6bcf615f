"""Which layers ``target_layer="auto"`` takes: the last cut of the network, and an earlier one that sees finer."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from egcam_lightning.explain.candidates import Candidate
from egcam_lightning.explain.gradient import gradient_at
from egcam_lightning.explain.split_model import Forward, SplitModel, first_tensor, host_image_like
from egcam_lightning.explain.token_layout import Layout

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
        candidates: the modules that might serve, in the order in which they finish.
        forward: from images to the output that is explained.
        images: ``(n, C, H, W)``, two to four are enough.
        head: the module in front of an output that does not vary over the images yet, see
            :func:`~egcam_lightning.explain.candidates.observe`.
        several: whether the mean over two layers is wanted, where there are two.

    Returns:
        One layer or two, in the order in which they finish.

    """
    host_image = host_image_like(images)
    evidence = forward if head is None else _input_of(head, forward)

    def serves(candidate: Candidate) -> bool:
        cut = SplitModel(candidate.module, candidate.name, evidence, candidate.axis)
        return _serves(cut, candidate.layout, images, host_image)

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
        return seen[-1]

    return run


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
