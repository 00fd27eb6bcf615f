"""Channel weights that predict best what the samples' own perturbations do to the score."""

from __future__ import annotations

import torch
from torch import Tensor

# Of the mean square of the changes: a few dozen samples leave the weights of hundreds of channels open.
_RIDGE = 1e-2


def optimal_weights(change: Tensor, score_change: Tensor, weight: Tensor | None = None) -> Tensor:
    """Weights of channels by ridge-regularised least squares, for each image.

    They minimise the infidelity (Yeh et al., 2019) of a map that weights channels, over the perturbations that the
    samples make: how far the weighted changes of the activation are from the changes of the score (Buono et al., TMLR
    2026, derive them for the whole distribution).

    Args:
        change: ``(S, B, K)``, the mean over positions of ``A - A_s``, from each sample's point to the image.
        score_change: ``(S, B)``, the difference of their scores.
        weight: ``(S, B)``, by which samples count; ``None`` for all alike.

    Returns:
        ``(B, K)``.

    Example:
        >>> change = torch.randn(64, 1, 2, generator=torch.Generator().manual_seed(0))
        >>> optimal_weights(change, change @ torch.tensor([2.0, -1.0])).round(decimals=1)
        tensor([[ 2., -1.]])

    """
    rows, target = change.double().transpose(0, 1), score_change.double().transpose(0, 1)
    if weight is not None:
        root = weight.double().transpose(0, 1).sqrt()
        rows, target = rows * root[..., None], target * root
    gram = rows @ rows.transpose(1, 2)  # between samples, of which there are fewer than channels
    ridge = _RIDGE * gram.diagonal(dim1=1, dim2=2).mean(1).clamp(min=torch.finfo(torch.float32).tiny)
    gram += ridge[:, None, None] * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    solution: Tensor = torch.linalg.solve(gram, target)
    return (rows.transpose(1, 2) @ solution[..., None])[..., 0].float()
