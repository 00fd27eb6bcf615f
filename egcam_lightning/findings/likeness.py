"""How alike the maps of a class are, to each other and to those of other classes."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def likeness(attribution: Tensor, group: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Compare the positive parts of maps within their groups and between them.

    Args:
        attribution: ``(n, h, w)``, signed.
        group: ``(n,)`` int64, which group each is of.
        groups: how many there are, k.

    Returns:
        How alike the maps of each group are to each other, ``(k,)``, as a mean correlation, NaN of fewer than two; the
        same with the maps of other groups, ``(k,)``; and their mean ``(k, h, w)``, each by its own maximum.

    Example:
        >>> left, right = torch.eye(2)[0].expand(2, 2), torch.eye(2)[1].expand(2, 2)
        >>> within, between, _ = likeness(torch.stack([left, left, right, right]), torch.tensor([0, 0, 1, 1]), 2)
        >>> within.round().tolist(), between.round().tolist()
        ([1.0, 1.0], [-1.0, -1.0])

    """
    positive = attribution.nan_to_num(0.0, 0.0, 0.0).clamp(min=0)
    flat = positive.flatten(1)
    tiny = torch.finfo(torch.float32).tiny
    mean = torch.zeros(groups, flat.shape[1], device=flat.device)
    mean.index_add_(0, group, flat / flat.amax(1, keepdim=True).clamp(min=tiny))
    size = torch.bincount(group, minlength=groups).float()
    unit = flat - flat.mean(1, keepdim=True)
    unit = unit / unit.norm(dim=1, keepdim=True).clamp(min=tiny)
    total = torch.zeros(groups, flat.shape[1], device=flat.device).index_add_(0, group, unit)
    within = (total.square().sum(1) - size) / (size * (size - 1))
    rest = len(group) - size
    between = (total * (total.sum(0) - total)).sum(1) / (size * rest)
    mean = mean / size.clamp(min=1)[:, None]
    return within.nan_to_num(posinf=math.nan), between, mean.view(groups, *attribution.shape[1:])
