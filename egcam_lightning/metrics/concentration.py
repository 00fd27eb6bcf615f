"""How concentrated the map is."""

from __future__ import annotations

from torch import Tensor

from egcam_lightning.metrics._base import MeanOverImages
from egcam_lightning.metrics.functional.concentration import complexity, sparseness


class Complexity(MeanOverImages):
    """Entropy of the positive map, as a share of the largest it can have; lower is simpler.

    Range: [0, 1], 1 is a uniform map and 0 a single cell. Cost: none. Paper: Bhatt et al., *Evaluating and Aggregating
    Feature-based Model Explanations*, IJCAI 2020.

    Args:
        kwargs: those of :class:`torchmetrics.Metric`.

    Attributes:
        skipped: how many maps had nothing positive or something that is not finite, and were left out.

    Example:
        >>> import torch
        >>> metric = Complexity()
        >>> metric.update(torch.tensor([[[1.0, 1.0]], [[1.0, 0.0]]]))
        >>> metric.compute()
        tensor(0.5000)

    """

    higher_is_better: bool = False
    is_differentiable: bool = True
    plot_upper_bound: float | None = 1.0

    def update(self, attribution: Tensor) -> None:
        """Add a batch.

        Args:
            attribution: ``(B, h, w)``; negative values count as 0.

        """
        self._add(complexity(attribution))


class Sparseness(MeanOverImages):
    """Gini index of the positive map; higher is sparser.

    Range: [0, 1), 0 is a uniform map and ``1 - 1 / (h * w)`` a single cell. Cost: none. Paper: Chalasani et al.,
    *Concise Explanations of Neural Networks using Adversarial Training*, ICML 2020.

    Args:
        kwargs: those of :class:`torchmetrics.Metric`.

    Attributes:
        skipped: how many maps had nothing positive or something that is not finite, and were left out.

    Example:
        >>> import torch
        >>> metric = Sparseness()
        >>> metric.update(torch.tensor([[[1.0, 1.0]], [[1.0, 0.0]]]))
        >>> metric.compute()
        tensor(0.2500)

    """

    higher_is_better: bool = True
    is_differentiable: bool = True
    plot_upper_bound: float | None = 1.0

    def update(self, attribution: Tensor) -> None:
        """Add a batch.

        Args:
            attribution: ``(B, h, w)``; negative values count as 0.

        """
        self._add(sparseness(attribution))
