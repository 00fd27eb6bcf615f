"""The gradient of a score at the layer, and how it survives half precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Behind a mean over 512 x 512 positions the gradient of a logit is below what float16 resolves, so it is scaled up on
# the way: by powers of two, which cost no bit. The largest is the largest that float16 holds; where that is too much
# for a gradient, the next is tried, and none at last.
_SCALES = (2.0**15, 2.0**10, 2.0**5)


def gradient_at(leaf: Tensor, score: Tensor) -> Tensor | None:
    """The gradient of the scores' sum at a leaf; ``None`` where none reaches it: the model detaches, or ignores it.

    Where a part of the way is computed in float16 the score is scaled, so that small gradients are not lost.

    Args:
        leaf: a float32 tensor that requires a gradient.
        score: float32 scores, computed from it.

    Example:
        >>> leaf = torch.ones(3, requires_grad=True)
        >>> small = (leaf.half() * 1e-4 * 1e-4).float()  # 1e-8 is below the smallest number of float16
        >>> bool((gradient_at(leaf, small) > 0).all()), bool((torch.autograd.grad(small.sum(), leaf)[0] > 0).any())
        (True, False)

    """
    if not score.requires_grad:
        return None
    total = score.sum()
    if not _in_float16(total):
        return torch.autograd.grad(total, leaf, allow_unused=True)[0]
    first, *rest = _SCALES
    found: tuple[Tensor | None, ...] = torch.autograd.grad(total * first, leaf, retain_graph=True, allow_unused=True)
    if found[0] is None:
        return None
    gradient = found[0]
    # The host waits for the device here, and only here: of the smaller scales all are tried, and the device chooses.
    if bool(gradient.isfinite().all()):
        return gradient / first
    chosen = torch.autograd.grad(total, leaf, retain_graph=True)[0]
    for scale in reversed(rest):
        gradient = torch.autograd.grad(total * scale, leaf, retain_graph=True)[0]
        chosen = torch.where(gradient.isfinite().all(), gradient / scale, chosen)
    return chosen


def _in_float16(score: Tensor) -> bool:
    """Whether a part of what a score was computed by ran in float16, whatever it was converted to on the way."""
    nodes: list[Any] = [score.grad_fn]
    seen: set[Any] = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if any(of.dtype is torch.float16 for of in getattr(node, "_input_metadata", ())):
            return True
        nodes += [before for before, _ in node.next_functions]
    return False
