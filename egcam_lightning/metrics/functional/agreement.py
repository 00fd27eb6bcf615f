"""Consensus: does the model look at one place whatever the picture shows?"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from egcam_lightning.metrics.functional._maps import check_maps, check_target, full_precision, positive_part


def directions(attribution: Tensor) -> Tensor:
    """The positive part of each map ``(B, h, w)`` as a vector ``(B, n)`` of length 1.

    0 where nothing is positive, NaN where something is not finite.
    """
    attribution = check_maps(attribution)
    vectors = functional.normalize(positive_part(attribution).flatten(1), dim=1)
    finite = attribution.isfinite().flatten(1).all(1, keepdim=True)
    return torch.where(finite, vectors, torch.nan)


def usable_directions(attribution: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The :func:`directions` ``(n, h * w)`` of the maps that have one, and their targets ``(n,)``."""
    vectors = directions(attribution)
    target = check_target(target, len(vectors))
    usable = (vectors > 0).any(1)
    return vectors[usable], target[usable]


@full_precision
def consensus_of(vectors: Tensor, target: Tensor) -> Tensor | None:
    """Mean product of unit vectors ``(N, n)`` over pairs with different targets ``(N,)``, or ``None`` without one.

    From the sums of each class, so that it costs as much as reading the vectors, not as much as all pairs.
    """
    classes, index = torch.unique(target, return_inverse=True)
    members = functional.one_hot(index, max(len(classes), 1)).to(vectors.dtype)
    sums = members.T @ vectors
    pairs = len(vectors) ** 2 - members.sum(0).square().sum()
    if pairs == 0:
        return None
    return ((sums.sum(0).square().sum() - sums.square().sum()) / pairs).clamp(0, 1)


def consensus(attribution: Tensor, target: Tensor) -> Tensor | None:
    """Mean cosine similarity of the positive maps of images with different targets.

    Near 1 where the model looks at the same place whatever the picture shows, as it does with a shortcut that has a
    fixed place: with a coloured tag in a corner 0.98 to 0.995 was measured, and 0.38 to 0.70 without. An object that is
    always in the middle has a high consensus too (compare :func:`consensus_null`), and a shortcut without a fixed place
    has none.

    Range: [0, 1]; neither direction is better by itself. Cost: none.

    Args:
        attribution: ``(B, h, w)``; negative values count as 0. Maps with nothing positive or something that is not
            finite are left out.
        target: ``(B,)`` int64, the explained class.

    Returns:
        A scalar, or ``None`` where no two maps have different targets.

    Raises:
        TypeError: where the maps are no floats or the targets no integers.
        ValueError: where their shapes do not fit.

    Example:
        >>> import torch
        >>> maps = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]])
        >>> consensus(maps, torch.tensor([0, 1, 2]))
        tensor(0.3333)
        >>> consensus(maps, torch.tensor([1, 1, 1])) is None
        True

    """
    return consensus_of(*usable_directions(attribution, target))


@full_precision
def recurrence_of(vectors: Tensor, target: Tensor) -> Tensor | None:
    """Mean over unit vectors ``(N, n)`` of the best product with one of a different target, or ``None`` without one."""
    other = target[:, None] != target[None]
    if not bool(other.any()):
        return None
    best = (vectors @ vectors.T).masked_fill(~other, 0.0).amax(1)
    return best[other.any(1)].mean().clamp(0, 1)


def recurrence(attribution: Tensor, target: Tensor) -> Tensor | None:
    """Mean over images of the best cosine similarity of the positive map with that of an image of another class.

    Near 1 where every map comes back under another class, as it does with a shortcut at one of several places, where
    :func:`consensus` fails. In the study of ``examples/clever_hans.py`` it was 0.93 without a shortcut and 0.96 to 1.00
    with one of four kinds, and told them apart from the first epoch on. It grows with the number of images and as
    training goes on, so compare it between runs of the same probe, not with a universal threshold.

    Range: [0, 1]; neither direction is better by itself. Cost: none.

    Args:
        attribution: ``(B, h, w)``; negative values count as 0. Maps with nothing positive or something that is not
            finite are left out.
        target: ``(B,)`` int64, the explained class.

    Returns:
        A scalar, or ``None`` where no two maps have different targets.

    Raises:
        TypeError: where the maps are no floats or the targets no integers.
        ValueError: where their shapes do not fit.

    Example:
        >>> import torch
        >>> maps = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]])
        >>> recurrence(maps, torch.tensor([0, 1, 2]))
        tensor(0.6667)

    """
    return recurrence_of(*usable_directions(attribution, target))


def consensus_null(mask: Tensor, target: Tensor, size: tuple[int, ...]) -> Tensor | None:
    """The consensus of maps that lie evenly on the objects: what the objects' places alone account for.

    Where it is high, objects of all classes are at the same place, and a high :func:`consensus` says nothing; where it
    is low and the consensus is high, the model looks at one place although the objects are elsewhere.

    Range: [0, 1]. Cost: none.

    Args:
        mask: ``(B, H, W)``, where the object is; images with an empty mask are left out.
        target: ``(B,)`` int64.
        size: the grid of the maps to compare with, ``(h, w)``.

    Returns:
        A scalar, or ``None`` where no two masks have different targets.

    Raises:
        TypeError: where the targets are no integers.
        ValueError: where the shapes do not fit.

    Example:
        >>> import torch
        >>> mask = torch.zeros(2, 8, 8, dtype=torch.bool)
        >>> mask[0, :4], mask[1, 4:] = True, True
        >>> consensus_null(mask, torch.tensor([0, 1]), (4, 4))
        tensor(0.)

    """
    if mask.ndim - 1 != len(size) or mask.ndim not in (3, 4):
        raise ValueError(f"mask must have shape (B, H, W) for a grid of {tuple(size)}, got {tuple(mask.shape)}.")
    return consensus(functional.interpolate(mask.float()[:, None], size=size, mode="area")[:, 0], target)
