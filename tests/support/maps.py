"""What tests compare of maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference in units of the largest value."""
    assert ours.shape == theirs.shape
    ours, theirs = ours.cpu(), theirs.cpu()
    return float((ours - theirs).abs().max() / theirs.abs().max())


def pooled_gap(explanation: Any) -> float:
    """The completeness gap pooled over the images of an explanation."""
    wanted = explanation.score - explanation.baseline_score
    found = explanation.attribution.flatten(1).sum(1) + explanation.off_grid
    return float((found - wanted).abs().sum() / wanted.abs().sum())


def rank_correlation(ours: Tensor, theirs: Tensor) -> float:
    """The smallest Spearman correlation over images."""
    a, b = (t.flatten(1).argsort(1).argsort(1).float().T for t in (ours, theirs))
    return min(float(torch.corrcoef(torch.stack([x, y]))[0, 1]) for x, y in zip(a.T, b.T, strict=True))
