"""Relevance mass and pointing game: is the heat where a mask says that the object is?"""

from __future__ import annotations

import torch
from torch import Tensor

from egcam_lightning.metrics.functional._maps import check_masks, positive_part, resize, spread, where_finite


def relevance_mass(attribution: Tensor, mask: Tensor) -> Tensor:
    """Share of the positive relevance that lies inside the mask; higher is better.

    Compare it with the share of the image that the mask covers, which is what a uniform map has.

    Range: [0, 1]. Cost: none. Paper: Arras et al., *CLEVR-XAI: A Benchmark Dataset for the Ground Truth Evaluation of
    Neural Network Explanations*, Information Fusion 2022.

    Args:
        attribution: ``(B, h, w)``; negative values count as 0, each cell is spread over its pixels.
        mask: ``(B, H, W)`` boolean, at least as large as the maps.

    Returns:
        ``(B,)``; NaN where the mask is empty, nothing is positive or something is not finite.

    Raises:
        TypeError: where maps or masks are not of the right kind.
        ValueError: where their shapes do not fit, or the mask holds other values than 0 and 1.

    Example:
        >>> import torch
        >>> relevance_mass(torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[True, False]]]))
        tensor([0.7500])

    """
    mask, attribution = check_masks(mask, attribution)
    relevance = spread(positive_part(attribution), tuple(mask.shape[1:])).flatten(1)
    inside = mask.flatten(1)
    share = (relevance * inside).sum(1) / relevance.sum(1)
    return where_finite(torch.where(inside.any(1), share.clamp(0, 1), torch.nan), attribution)


def pointing_game(attribution: Tensor, mask: Tensor) -> Tensor:
    """Whether the peak of the map lies inside the mask; higher is better.

    Where several pixels tie for the peak, the share of them that lies inside: what choosing one of them at random
    would give, so that a constant map gets the mask's share of the image. (Quantus counts a hit where any of them
    does.) There is no margin around the mask; Zhang et al. allow 15 pixels.

    Range: [0, 1]. Cost: none. Paper: Zhang et al., *Top-down Neural Attention by Excitation Backprop*, IJCV 2018.

    Args:
        attribution: ``(B, h, w)``; negative values count as 0, interpolated to the mask's size.
        mask: ``(B, H, W)`` boolean, at least as large as the maps.

    Returns:
        ``(B,)``; 0 where nothing is positive, since such a map points nowhere; NaN where the mask is empty or
        something is not finite.

    Raises:
        TypeError: where maps or masks are not of the right kind.
        ValueError: where their shapes do not fit, or the mask holds other values than 0 and 1.

    Example:
        >>> import torch
        >>> pointing_game(torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[True, False]]]))
        tensor([1.])

    """
    mask, attribution = check_masks(mask, attribution)
    positive = resize(positive_part(attribution), tuple(mask.shape[1:])).flatten(1)
    inside = mask.flatten(1)
    peak = (positive == positive.amax(1, keepdim=True)) & (positive > 0)
    hit = (peak & inside).sum(1) / peak.sum(1).clamp(min=1)
    return where_finite(torch.where(inside.any(1), hit, torch.nan), attribution)
