"""Whether the map lies on the marked object."""

from __future__ import annotations

from torch import Tensor

from egcam_lightning.metrics._base import MeanOverImages
from egcam_lightning.metrics.functional.localization import pointing_game, relevance_mass


class RelevanceMass(MeanOverImages):
    """Share of the positive relevance that lies inside the mask; higher is better.

    Range: [0, 1]; a uniform map has the share of the image that the mask covers. Cost: none. Paper: Arras et al.,
    *CLEVR-XAI: A Benchmark Dataset for the Ground Truth Evaluation of Neural Network Explanations*, Information Fusion
    2022.

    Args:
        kwargs: those of :class:`torchmetrics.Metric`.

    Attributes:
        skipped: how many images had an empty mask, or a map with nothing positive or something that is not finite, and
            were left out.

    Example:
        >>> import torch
        >>> metric = RelevanceMass()
        >>> metric.update(torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[True, False]]]))
        >>> metric.compute()
        tensor(0.7500)

    """

    higher_is_better: bool = True
    needs_masks: bool = True
    is_differentiable: bool = True
    plot_upper_bound: float | None = 1.0

    def update(self, attribution: Tensor, mask: Tensor) -> None:
        """Add a batch.

        Args:
            attribution: ``(B, h, w)``; negative values count as 0.
            mask: ``(B, H, W)`` boolean, at least as large as the maps.

        """
        self._add(relevance_mass(attribution, mask))


class PointingGame(MeanOverImages):
    """Share of the images whose map has its peak inside the mask; higher is better.

    Range: [0, 1]. Cost: none. Paper: Zhang et al., *Top-down Neural Attention by Excitation Backprop*, IJCV 2018. See
    :func:`~egcam_lightning.metrics.functional.pointing_game` for ties; a map with nothing positive is a miss.

    Args:
        kwargs: those of :class:`torchmetrics.Metric`.

    Attributes:
        skipped: how many images had an empty mask or a map that is not finite, and were left out.

    Example:
        >>> import torch
        >>> metric = PointingGame()
        >>> metric.update(torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[True, False]]]))
        >>> metric.compute()
        tensor(1.)

    """

    higher_is_better: bool = True
    needs_masks: bool = True
    plot_upper_bound: float | None = 1.0

    def update(self, attribution: Tensor, mask: Tensor) -> None:
        """Add a batch.

        Args:
            attribution: ``(B, h, w)``; negative values count as 0.
            mask: ``(B, H, W)`` boolean, at least as large as the maps.

        """
        self._add(pointing_game(attribution, mask))
