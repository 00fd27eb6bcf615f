"""Drift: how far did the map of an image move between two snapshots, and how far could chance alone move it?

Every distance is 0 for bit-equal maps, by definition, 1 where just one of two maps says nothing (is constant), and NaN
where something is not finite.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from egcam_lightning.metrics.functional._maps import (
    check_maps,
    check_pair,
    few_at_once,
    full_precision,
    where_finite,
)


def _settle(distance: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Apply what holds for every distance ``(B,)`` of maps ``(B, h, w)``, whatever its own formula gives there."""
    a, b = first.flatten(1), second.flatten(1)
    constant = (a == a[:, :1]).all(1) | (b == b[:, :1]).all(1)
    distance = torch.where(constant, 1.0, distance)
    return where_finite(torch.where((a == b).all(1), 0.0, distance), first, second)


def _ranks(values: Tensor) -> Tensor:
    """Average ranks ``(N, n)`` within each row, centred on 0."""
    ordered = values.sort(1).values
    values = values.contiguous()
    below = torch.searchsorted(ordered, values, right=False)
    up_to = torch.searchsorted(ordered, values, right=True)
    return (below + up_to - values.shape[1]).to(values.dtype) / 2


def rank_drift(first: Tensor, second: Tensor) -> Tensor:
    """1 - Spearman's rank correlation over the cells of two signed maps; lower is more alike.

    Range: [0, 2]: 1 is unrelated, 2 is reversed. Cost: none.

    Args:
        first: ``(B, h, w)``, signed.
        second: ``(B, h, w)``, signed.

    Returns:
        ``(B,)``; ties take their average rank.

    Raises:
        TypeError: where the maps are no tensors of floats.
        ValueError: where their shapes differ.

    Example:
        >>> import torch
        >>> rank_drift(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[3.0, 2.0, 1.0]]]))
        tensor([2.])

    """
    first, second = check_pair(first, second)
    a, b = _ranks(first.flatten(1)), _ranks(second.flatten(1))
    norm = (a.square().sum(1) * b.square().sum(1)).sqrt().clamp(min=torch.finfo(a.dtype).tiny)
    return _settle((1 - (a * b).sum(1) / norm).clamp(0, 2), first, second)


@full_precision
def ssim_drift(first: Tensor, second: Tensor) -> Tensor | None:
    """1 - structural similarity of two signed maps; lower is more alike.

    A Gaussian window of 11 cells, or the largest odd number that fits the grid; the data range is the one of the two
    maps of an image together. Range: [0, 2]. Cost: none. Paper: Wang et al., *Image Quality Assessment: From Error
    Visibility to Structural Similarity*, IEEE TIP 2004.

    Args:
        first: ``(B, h, w)``, signed.
        second: ``(B, h, w)``, signed.

    Returns:
        ``(B,)``, or ``None`` on grids below 6 x 6, which have no structure to compare.

    Raises:
        TypeError: where the maps are no tensors of floats.
        ValueError: where their shapes differ.

    Example:
        >>> import torch
        >>> board = torch.eye(8)[None]
        >>> ssim_drift(board, board), ssim_drift(board[:, :4], board[:, :4])
        (tensor([0.]), None)

    """
    first, second = check_pair(first, second)
    grid = first.shape[1:]
    if min(grid) < 6:
        return None
    from torchmetrics.functional.image import structural_similarity_index_measure

    a, b = first.flatten(1), second.flatten(1)
    low, high = a.amin(1).minimum(b.amin(1)), a.amax(1).maximum(b.amax(1))
    # Dividing both maps by their common range is what a data range of their own for every image amounts to.
    scale = (high - low).clamp(min=torch.finfo(a.dtype).tiny).view(-1, *[1] * len(grid))
    radius = min(5, (min(grid) - 1) // 2)
    similarity = structural_similarity_index_measure(
        (first / scale)[:, None], (second / scale)[:, None], sigma=0.3 * radius, data_range=1.0, reduction="none"
    )
    assert isinstance(similarity, Tensor)  # a tuple only where contrast or full images are asked for
    return _settle((1 - similarity.view(-1)).clamp(0, 2), first, second)


def top_iou_drift(first: Tensor, second: Tensor, *, share: float = 0.2) -> Tensor:
    """1 - intersection over union of the cells with the highest values; lower is more alike.

    Range: [0, 1]. Cost: none.

    Args:
        first: ``(B, h, w)``, signed.
        second: ``(B, h, w)``, signed.
        share: the share of cells that counts, at least one; ties go to the cell that comes first.

    Returns:
        ``(B,)``.

    Raises:
        TypeError: where the maps are no tensors of floats.
        ValueError: where their shapes differ or ``share`` is not in (0, 1].

    Example:
        >>> import torch
        >>> top_iou_drift(torch.tensor([[[9.0, 0.0, 1.0]]]), torch.tensor([[[8.0, 1.0, 0.0]]]))
        tensor([0.])

    """
    first, second = check_pair(first, second)
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}.")
    cells = math.prod(first.shape[1:])
    count = max(1, round(share * cells))

    def top(maps: Tensor) -> Tensor:
        index = maps.flatten(1).argsort(dim=1, descending=True, stable=True)[:, :count]
        return torch.zeros(len(maps), cells, dtype=torch.bool, device=maps.device).scatter(1, index, True)

    a, b = top(first), top(second)
    return _settle(1 - (a & b).sum(1) / (a | b).sum(1), first, second)


@full_precision
def centre_shift(first: Tensor, second: Tensor) -> Tensor:
    """How far the centre of mass of the positive part moved, as a share of the grid's diagonal; lower is more alike.

    Range: [0, 1]. Cost: none.

    Args:
        first: ``(B, h, w)``, signed.
        second: ``(B, h, w)``, signed.

    Returns:
        ``(B,)``; 1 where only one of two maps has anything positive, 0 where neither has.

    Raises:
        TypeError: where the maps are no tensors of floats.
        ValueError: where their shapes differ.

    Example:
        >>> import torch
        >>> centre_shift(torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]), torch.tensor([[[0.0, 0.0], [0.0, 1.0]]]))
        tensor([0.5000])

    """
    first, second = check_pair(first, second)
    grid = first.shape[1:]
    axes = [torch.arange(length, device=first.device, dtype=first.dtype) for length in grid]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)

    def centre(maps: Tensor) -> tuple[Tensor, Tensor]:
        positive = maps.flatten(1).clamp(min=0)
        peak = positive.amax(1, keepdim=True)
        mass = positive / peak.clamp(min=torch.finfo(peak.dtype).tiny)
        total = mass.sum(1, keepdim=True)
        return (mass @ places) / total.clamp(min=1), total[:, 0] > 0

    (a, some_a), (b, some_b) = centre(first), centre(second)
    distance = (a - b).norm(dim=1) / math.hypot(*grid)
    distance = _settle(torch.where(some_a == some_b, distance, 1.0), first, second)
    return where_finite(torch.where(~some_a & ~some_b, 0.0, distance), first, second)


@full_precision
def noise_floor(
    draws: Tensor, baseline_index: Tensor, *, num_splits: int = 16, quantile: float = 0.95, seed: int = 0
) -> Tensor | None:
    """The rank drift that Monte Carlo alone can produce, from above.

    The baselines of one snapshot are split into random halves ``num_splits`` times, all draws of a baseline in the same
    half; the floor is a quantile of the drift between the two half-sample means. Halves of the *draws* would be too
    alike where draws outnumber baselines. The splits depend on the seed and on which baselines an image has, and on
    nothing else: an image has the same floor in every batch and on every rank.

    Range: [0, 2]. Cost: none, the draws are those of the explanation.

    Args:
        draws: ``(S, B, h, w)``, the signed map of every draw.
        baseline_index: ``(S, B)`` int64, the baseline of every draw.
        num_splits: how many random halves.
        quantile: of the drift over the splits.
        seed: of the splits.

    Returns:
        ``(B,)``; NaN for an image with fewer than 4 baselines or a draw that is not finite; ``None`` where no image has
        4 baselines.

    Raises:
        TypeError: where the draws are no tensor of floats, or the index no tensor of integers.
        ValueError: where their shapes do not fit, ``num_splits`` is below 1 or ``quantile`` not in [0, 1].

    Example:
        >>> import torch
        >>> draws = torch.randn(8, 2, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> noise_floor(draws, torch.arange(8)[:, None].expand(8, 2)).shape
        torch.Size([2])

    """
    if not isinstance(draws, Tensor) or draws.ndim not in (4, 5):
        seen = tuple(draws.shape) if isinstance(draws, Tensor) else type(draws).__name__
        raise ValueError(f"draws must have shape (S, B, h, w), got {seen}.")
    flat = check_maps(draws.flatten(0, 1), "draws").view(*draws.shape[:2], -1)
    if baseline_index.is_floating_point() or baseline_index.dtype == torch.bool:
        raise TypeError(f"baseline_index must hold integers, got {baseline_index.dtype}.")
    if baseline_index.shape != draws.shape[:2]:
        raise ValueError(
            f"baseline_index must have the shape (S, B) of draws, {tuple(draws.shape[:2])}, "
            f"got {tuple(baseline_index.shape)}."
        )
    if num_splits < 1 or not 0 <= quantile <= 1:
        raise ValueError(
            f"num_splits must be at least 1 and quantile in [0, 1], got num_splits={num_splits}, quantile={quantile}."
        )
    num_draws = len(draws)
    # The baselines of an image in order, numbered from 0 without gaps: (S, B).
    ordered, position = baseline_index.sort(0)
    new = torch.zeros_like(ordered)
    new[1:] = ordered[1:] != ordered[:-1]
    number = torch.empty_like(ordered).scatter_(0, position, new.cumsum(0))
    num_baselines = number.amax(0) + 1
    enough = num_baselines >= 4
    if not bool(enough.any()):
        return None
    # The same keys for all images, as many as there can be baselines: an image uses the first of them.
    keys = torch.rand(num_splits, num_draws, generator=torch.Generator().manual_seed(seed)).to(draws.device)
    keys = keys[:, None].expand(-1, draws.shape[1], -1)  # (splits, B, S)
    keys = keys.masked_fill(torch.arange(num_draws, device=draws.device) >= num_baselines[:, None], 2.0)
    first_half = keys.argsort(-1).argsort(-1) < (num_baselines // 2)[:, None]
    member = first_half.gather(2, number.T.expand(num_splits, -1, -1)).to(flat.dtype)  # (splits, B, S)

    def mean_of(weight: Tensor, maps: Tensor) -> Tensor:
        weight = weight / weight.sum(-1, keepdim=True).clamp(min=1)
        return torch.einsum("ibs,sbn->ibn", weight, maps).reshape(-1, 1, maps.shape[2])

    def drift_of(images: slice, splits: slice) -> Tensor:
        half, maps = member[splits, images], flat[:, images]
        return rank_drift(mean_of(half, maps), mean_of(1 - half, maps)).view(half.shape[:2])

    drift = torch.empty(member.shape[:2], dtype=flat.dtype, device=flat.device)
    # Ranking takes a dozen tensors of as many cells: on large grids one image and a few splits at a time.
    few = few_at_once(flat[0])
    images, splits = (len(drift[0]), num_splits) if few >= drift.numel() else (1, min(few, num_splits))
    for i, j in itertools.product(range(0, len(drift[0]), images), range(0, num_splits, splits)):
        part = slice(i, i + images), slice(j, j + splits)
        drift[part[1], part[0]] = drift_of(*part)
    return torch.where(enough, torch.quantile(drift, quantile, dim=0), torch.nan)


def significant(drift: Tensor, *floors: Tensor) -> Tensor:
    """Whether the drift of an image is more than chance: larger than the largest of its floors.

    Args:
        drift: ``(B,)``, of :func:`rank_drift`.
        floors: ``(B,)`` each, of :func:`noise_floor`, one of each of the two snapshots.

    Returns:
        ``(B,)`` bool; false where the drift or a floor is NaN.

    Raises:
        ValueError: without any floor.

    Example:
        >>> import torch
        >>> significant(torch.tensor([0.3, 0.3]), torch.tensor([0.1, 0.1]), torch.tensor([0.2, 0.4]))
        tensor([ True, False])

    """
    if not floors:
        raise ValueError("significant needs the noise floor of at least one of the two snapshots.")
    return torch.stack([drift > floor for floor in floors]).all(0)
