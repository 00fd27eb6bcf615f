"""How alike the maps of different images are."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from egcam_lightning.metrics._base import ExplanationMetric
from egcam_lightning.metrics.functional.agreement import consensus_of, recurrence_of, usable_directions


class ExplanationConsensus(ExplanationMetric):
    """Mean cosine similarity of the positive maps of images with different targets.

    Near 1 where the model looks at one place whatever the picture shows. See
    :func:`~egcam_lightning.metrics.functional.consensus` for what it can and cannot tell, and
    :func:`~egcam_lightning.metrics.functional.consensus_null` for what to compare it with.

    Range: [0, 1]; an alarm when it is high, but an all-different model is not the aim either. Cost: none.

    Args:
        kwargs: those of :class:`torchmetrics.Metric`.

    Attributes:
        vectors: the maps as unit vectors, kept until ``reset``: ``h * w`` numbers per image.
        targets: their classes.
        skipped: how many maps had nothing positive or something that is not finite, and were left out.

    Example:
        >>> import torch
        >>> metric = ExplanationConsensus()
        >>> metric.update(torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]]), torch.tensor([0, 1, 2]))
        >>> metric.compute()
        tensor(0.3333)

    """

    higher_is_better: bool = False
    is_differentiable: bool = True
    plot_upper_bound: float | None = 1.0

    vectors: list[Tensor] | Tensor
    targets: list[Tensor] | Tensor

    _of = staticmethod(consensus_of)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Both flat and both floats: a rank without any image joins the others with an empty tensor of that kind only.
        self.add_state("vectors", [], dist_reduce_fx="cat")
        self.add_state("targets", [], dist_reduce_fx="cat")

    def update(self, attribution: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            attribution: ``(B, h, w)``; negative values count as 0. The grid is the same in every batch.
            target: ``(B,)`` int64, the explained class.

        """
        vectors, target = usable_directions(attribution, target)
        self.skipped = self.skipped + len(attribution) - len(target)
        if not len(target):
            return
        assert isinstance(self.vectors, list)
        assert isinstance(self.targets, list)
        if self.vectors and self.vectors[0].numel() != self.targets[0].numel() * vectors.shape[1]:
            raise ValueError(
                f"all maps must be of one grid, got {vectors.shape[1]} cells after "
                f"{self.vectors[0].numel() // self.targets[0].numel()}; explain every batch at the same layer and size."
            )
        self.vectors.append(vectors.float().flatten())
        self.targets.append(target.float())

    def compute(self) -> Tensor:
        """Give the value, a scalar; NaN where no two maps have different targets."""
        if len(self.targets) == 0:
            return torch.tensor(math.nan, device=self.device)
        targets = dim_zero_cat(self.targets)
        value = self._of(dim_zero_cat(self.vectors).view(len(targets), -1), targets) if len(targets) else None
        return torch.tensor(math.nan, device=self.device) if value is None else value


class ExplanationRecurrence(ExplanationConsensus):
    """Mean over images of the best cosine similarity of the positive map with one of another class.

    Near 1 where every map comes back under another class, as with a shortcut at one of several places, which consensus
    does not see. See :func:`~egcam_lightning.metrics.functional.recurrence` for what it can and cannot tell.

    Range: [0, 1]; an alarm when it is higher than in other runs of the same images. Cost: none.

    Args:
        kwargs: those of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = ExplanationRecurrence()
        >>> metric.update(torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]]), torch.tensor([0, 1, 2]))
        >>> metric.compute()
        tensor(0.6667)

    """

    _of = staticmethod(recurrence_of)
