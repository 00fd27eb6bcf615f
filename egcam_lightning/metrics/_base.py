"""What the metrics share: a mean over images that leaves out, and counts, what has no value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torchmetrics import Metric

Function = TypeVar("Function", bound=Callable[..., Tensor])


class ExplanationMetric(Metric):
    """A metric of explanations.

    Attributes:
        skipped: how many images had no value (a map that is not finite, an empty mask, ...) and were left out.
        needs_masks: whether it measures against masks of the objects.
        uses_probability: whether its ``score_fn`` is to give a probability, where there is one.
        takes_input_type: whether its images are to be of the type that the model takes, not floats.

    """

    needs_masks: bool = False
    uses_probability: bool = False
    takes_input_type: bool = False

    is_differentiable: bool = False
    full_state_update: bool = False
    plot_lower_bound: float | None = 0.0

    skipped: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("skipped", torch.tensor(0), dist_reduce_fx="sum")

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Plot one value or several.

        Args:
            val: a value of ``compute`` or ``forward``, or a list of them; ``None`` computes it.
            ax: the matplotlib axis to draw on; ``None`` for a new one.

        Returns:
            The figure and the axis.

        """
        return self._plot(val, ax)


class MeanOverImages(ExplanationMetric):
    """The mean of one value per image.

    Attributes:
        total: sum of the values.
        count: how many there are.

    """

    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def _add(self, values: Tensor) -> None:
        """Add one value per image ``(B,)``; those that are not finite are counted instead."""
        finite = values.isfinite()
        self.total = self.total + torch.where(finite, values, 0.0).sum()
        self.count = self.count + finite.sum()
        self.skipped = self.skipped + (~finite).sum()

    def compute(self) -> Tensor:
        """Give the mean over images, a scalar; NaN where no image had a value."""
        return self.total / self.count


def bound(function: Function | None, metric: Metric, name: str) -> Function:
    """Give the function that a metric needs, or say that it was never set."""
    if function is None:
        kind = type(metric).__name__
        raise ValueError(f"{kind} needs a {name}: write {kind}({name}=...), or set metric.{name} before update.")
    return function
