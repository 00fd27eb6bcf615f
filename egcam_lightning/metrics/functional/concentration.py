"""Complexity and sparseness: over how many cells does a map spread what it shows?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from egcam_lightning.metrics.functional._maps import check_maps, positive_part, where_finite


def complexity(attribution: Tensor) -> Tensor:
    """Entropy of the positive map, as a share of the largest it can have; lower is simpler.

    1 is a uniform map, 0 a single cell. Quantus' ``Complexity`` is the same without the division by ``log(h * w)``.

    Range: [0, 1]. Cost: none. Paper: Bhatt et al., *Evaluating and Aggregating Feature-based Model Explanations*,
    IJCAI 2020.

    Args:
        attribution: ``(B, h, w)``; negative values count as 0.

    Returns:
        ``(B,)``; NaN where nothing is positive or something is not finite.

    Raises:
        TypeError: where the map is no tensor of floats.
        ValueError: where its shape is not ``(B, h, w)`` or ``(B, d, h, w)``.

    Example:
        >>> import torch
        >>> complexity(torch.tensor([[[1.0, 1.0]], [[1.0, 0.0]]]))
        tensor([1., 0.])

    """
    attribution = check_maps(attribution)
    positive = positive_part(attribution).flatten(1)
    share = positive / positive.sum(1, keepdim=True)
    entropy = (share * -share.clamp(min=torch.finfo(share.dtype).tiny).log()).sum(1)
    # A map of one cell has an entropy of 0 and no other: 0, not 0 / 0.
    return where_finite((entropy / math.log(max(share.shape[1], 2))).clamp(0, 1), attribution)


def sparseness(attribution: Tensor) -> Tensor:
    """Gini index of the positive map; higher is sparser.

    0 is a uniform map, ``1 - 1 / (h * w)`` a single cell.

    Range: [0, 1). Cost: none. Paper: Chalasani et al., *Concise Explanations of Neural Networks using Adversarial
    Training*, ICML 2020.

    Args:
        attribution: ``(B, h, w)``; negative values count as 0.

    Returns:
        ``(B,)``; NaN where nothing is positive or something is not finite.

    Raises:
        TypeError: where the map is no tensor of floats.
        ValueError: where its shape is not ``(B, h, w)`` or ``(B, d, h, w)``.

    Example:
        >>> import torch
        >>> sparseness(torch.tensor([[[1.0, 1.0]], [[1.0, 0.0]]]))
        tensor([0.0000, 0.5000])

    """
    attribution = check_maps(attribution)
    positive = positive_part(attribution).flatten(1).sort(1).values
    cells = positive.shape[1]
    weight = 2 * torch.arange(1, cells + 1, device=positive.device, dtype=positive.dtype) - cells - 1
    return where_finite(((weight * positive).sum(1) / (cells * positive.sum(1))).clamp(0, 1), attribution)
