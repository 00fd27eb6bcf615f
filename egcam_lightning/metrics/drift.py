"""How far maps have moved."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor

from egcam_lightning.metrics._base import MeanOverImages
from egcam_lightning.metrics.functional.drift import centre_shift, rank_drift, ssim_drift, top_iou_drift

_DISTANCES = {"rank": rank_drift, "ssim": ssim_drift, "top_iou": top_iou_drift, "centre": centre_shift}


class ExplanationDrift(MeanOverImages):
    """Mean distance between the maps of the same images at two times; lower is steadier.

    Drift alone does not say whether anything changed: compare it, image by image, with
    :func:`~egcam_lightning.metrics.functional.noise_floor`.

    Range: [0, 2] for ``"rank"`` (1 is unrelated) and ``"ssim"``, [0, 1] for ``"top_iou"`` and ``"centre"``. Bit-equal
    maps have 0, and 1 is the value where just one of two maps is constant. Cost: none.

    Args:
        distance: ``"rank"`` for 1 - Spearman's rank correlation, ``"ssim"`` for 1 - structural similarity,
            ``"top_iou"`` for 1 - intersection over union of the top fifth of the cells, ``"centre"`` for the shift of
            the centre of mass as a share of the diagonal.
        kwargs: those of :class:`torchmetrics.Metric`.

    Attributes:
        skipped: how many images had a map that is not finite (or a grid too small for ``"ssim"``), and were left out.

    Raises:
        ValueError: where the distance is none of these.

    Example:
        >>> import torch
        >>> metric = ExplanationDrift()
        >>> metric.update(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[3.0, 2.0, 1.0]]]))
        >>> metric.compute()
        tensor(2.)

    """

    higher_is_better: bool = False

    def __init__(self, distance: Literal["rank", "ssim", "top_iou", "centre"] = "rank", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if distance not in _DISTANCES:
            raise ValueError(f"distance must be one of {', '.join(map(repr, _DISTANCES))}, got {distance!r}.")
        self.distance = distance

    def update(self, attribution: Tensor, reference: Tensor) -> None:
        """Add a batch.

        Args:
            attribution: ``(B, h, w)``, signed.
            reference: ``(B, h, w)``, the signed maps of the same images and targets to compare with.

        """
        values = _DISTANCES[self.distance](attribution, reference)
        self._add(attribution.new_full((len(attribution),), math.nan) if values is None else values)
