"""Does the map add up to the score that it explains?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from egcam_lightning.metrics._base import ExplanationMetric
from egcam_lightning.metrics.functional.completeness import completeness_terms


class CompletenessGap(ExplanationMetric):
    r"""Share of the scores' differences that the maps fail to account for; lower is better.

    Pooled over images, :math:`\sum_b |\text{missing}_b| / \sum_b |s(x_b) - \operatorname{mean} s(x')|`, because an
    image's own ratio has no bound where its score hardly differs from its baselines'. Use the baseline scores of the
    same draws as the maps.

    Range: [0, inf), 0 is complete. Cost: none. Paper: Buono et al., *Not All CAMs Are Complete: Completeness as the
    Key to Faithfulness*, TMLR 2026.

    Args:
        kwargs: those of :class:`torchmetrics.Metric`.

    Attributes:
        missing: sum of what is missing.
        difference: sum of what there is to explain.
        skipped: how many images had a map or a score that is not finite, and were left out.

    Example:
        >>> import torch
        >>> metric = CompletenessGap()
        >>> metric.update(torch.ones(2, 2, 2), torch.tensor([6.0, 5.0]), torch.tensor([1.0, 0.0]))
        >>> metric.compute()
        tensor(0.2000)

    """

    higher_is_better: bool = False
    is_differentiable: bool = True

    missing: Tensor
    difference: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("missing", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("difference", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(
        self, attribution: Tensor, score: Tensor, baseline_score: Tensor, off_grid: Tensor | None = None
    ) -> None:
        """Add a batch.

        Args:
            attribution: ``(B, h, w)``, signed, in units of the score.
            score: ``(B,)``, the score of the image.
            baseline_score: ``(B,)``, the mean score of its baselines.
            off_grid: ``(B,)``, attribution that has no place on the map; ``None`` for 0.

        """
        missing, difference = completeness_terms(attribution, score, baseline_score, off_grid)
        finite = missing.isfinite()
        self.missing = self.missing + torch.where(finite, missing, 0.0).sum()
        self.difference = self.difference + torch.where(finite, difference, 0.0).sum()
        self.skipped = self.skipped + (~finite).sum()

    def compute(self) -> Tensor:
        """Give the pooled gap, a scalar; NaN where there was nothing to explain."""
        return torch.where(self.difference > 0, self.missing / self.difference, torch.nan)
