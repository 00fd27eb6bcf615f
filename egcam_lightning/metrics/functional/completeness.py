"""Completeness: does the map add up to the difference of the scores that it explains?"""

from __future__ import annotations

import torch
from torch import Tensor

from egcam_lightning.metrics.functional._maps import check_maps, where_finite


def completeness_terms(
    attribution: Tensor, score: Tensor, baseline_score: Tensor, off_grid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What the completeness gap is the ratio of.

    Args:
        attribution: ``(B, h, w)``, signed, in units of the score.
        score: ``(B,)``, the score of the image.
        baseline_score: ``(B,)``, the mean score of its baselines.
        off_grid: ``(B,)``, attribution that has no place on the map; ``None`` for 0.

    Returns:
        What is missing ``|sum(map) + off_grid - (score - baseline_score)|`` and what there is to explain
        ``|score - baseline_score|``, each ``(B,)``; NaN where something is not finite.

    Raises:
        TypeError: where the map is no tensor of floats.
        ValueError: where the shapes do not fit.

    Example:
        >>> import torch
        >>> completeness_terms(torch.ones(1, 2, 2), torch.tensor([6.0]), torch.tensor([1.0]))
        (tensor([1.]), tensor([5.]))

    """
    attribution = check_maps(attribution)
    off_grid = torch.zeros_like(score) if off_grid is None else off_grid
    shape = attribution.shape[:1]
    for name, value in (("score", score), ("baseline_score", baseline_score), ("off_grid", off_grid)):
        if value.shape != shape:
            raise ValueError(f"{name} must have shape {tuple(shape)}, one number per image, got {tuple(value.shape)}.")
    difference = score.to(attribution.dtype) - baseline_score.to(attribution.dtype)
    missing = (attribution.flatten(1).sum(1) + off_grid.to(attribution.dtype) - difference).abs()
    finite = missing.isfinite() & difference.isfinite()
    return torch.where(finite, missing, torch.nan), torch.where(finite, difference.abs(), torch.nan)


def completeness_gap(
    attribution: Tensor, score: Tensor, baseline_score: Tensor, off_grid: Tensor | None = None
) -> Tensor:
    """Share of the score's difference that each map fails to account for; lower is better.

    An image's own gap has no bound where its score hardly differs from its baselines':
    :class:`~egcam_lightning.metrics.CompletenessGap` pools over images and is what to judge by.

    Range: [0, inf), 0 is complete. Cost: none. Paper: Buono et al., *Not All CAMs Are Complete: Completeness as the
    Key to Faithfulness*, TMLR 2026.

    Args:
        attribution: ``(B, h, w)``, signed, in units of the score.
        score: ``(B,)``, the score of the image.
        baseline_score: ``(B,)``, the mean score of its baselines.
        off_grid: ``(B,)``, attribution that has no place on the map; ``None`` for 0.

    Returns:
        ``(B,)``; 0 where nothing is missing, infinite where there was nothing to explain and the map does, NaN where
        something is not finite.

    Raises:
        TypeError: where the map is no tensor of floats.
        ValueError: where the shapes do not fit.

    Example:
        >>> import torch
        >>> completeness_gap(torch.ones(1, 2, 2), torch.tensor([6.0]), torch.tensor([1.0]))
        tensor([0.2000])

    """
    missing, difference = completeness_terms(attribution, score, baseline_score, off_grid)
    return where_finite(torch.where(missing == 0, 0.0, missing / difference), attribution)
