"""Does the score follow the pixels that the map calls relevant?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from egcam_lightning.metrics._base import MeanOverImages, bound
from egcam_lightning.metrics.functional._protocol import ScoreFunction
from egcam_lightning.metrics.functional.insertion_deletion import deletion_auc, insertion_auc


class _StepMetric(MeanOverImages):
    """What insertion and deletion share."""

    _auc: ClassVar[Callable[..., Tensor]]

    plot_upper_bound: float | None = 1.0

    uses_probability: bool = True

    def __init__(
        self,
        score_fn: ScoreFunction | None = None,
        num_steps: int = 12,
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.score_fn = score_fn
        self.num_steps = num_steps
        self.chunk_size = chunk_size

    def update(self, images: Tensor, attribution: Tensor, target: Tensor, replacement: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            images: ``(B, C, H, W)``.
            attribution: ``(B, h, w)``, signed.
            target: ``(B,)`` int64.
            replacement: ``(B, C, H, W)``, the image without what is put in or taken out; ``None`` for a blurred copy.

        """
        self._add(
            self._auc(
                bound(self.score_fn, self, "score_fn"),
                images,
                attribution,
                target,
                num_steps=self.num_steps,
                chunk_size=self.chunk_size,
                replacement=replacement,
            )
        )


class InsertionAUC(_StepMetric):
    """Mean score of the target while pixels are put into a blurred image, the most relevant first; higher is better.

    See :func:`~egcam_lightning.metrics.functional.insertion_auc` for the definition.

    Range: [0, 1]. Cost: ``num_steps`` forward passes per image. Paper: Petsiuk et al., *RISE: Randomized Input Sampling
    for Explanation of Black-box Models*, BMVC 2018.

    Args:
        score_fn: ``(images (N, C, H, W), target (N,)) -> (N,)``, the probability of the target; may be set later as an
            attribute.
        num_steps: the number of points on the curve.
        chunk_size: how many images go through ``score_fn`` at once; ``None`` chooses by their size.
        kwargs: those of :class:`torchmetrics.Metric`.

    Attributes:
        skipped: how many images had a map or a score that is not finite, and were left out.

    Example:
        >>> import torch
        >>> metric = InsertionAUC(lambda images, target: images.mean((1, 2, 3)))
        >>> metric.update(torch.ones(1, 1, 8, 8), torch.rand(1, 4, 4), torch.tensor([0]))
        >>> metric.compute()
        tensor(1.)

    """

    higher_is_better: bool = True

    _auc = staticmethod(insertion_auc)


class DeletionAUC(_StepMetric):
    """Mean score of the target while pixels give way to a blurred copy, the most relevant first; lower is better.

    See :func:`~egcam_lightning.metrics.functional.deletion_auc` for the definition.

    Range: [0, 1]. Cost: ``num_steps`` forward passes per image. Paper: Petsiuk et al., *RISE: Randomized Input Sampling
    for Explanation of Black-box Models*, BMVC 2018.

    Args:
        score_fn: ``(images (N, C, H, W), target (N,)) -> (N,)``, the probability of the target; may be set later as an
            attribute.
        num_steps: the number of points on the curve.
        chunk_size: how many images go through ``score_fn`` at once; ``None`` chooses by their size.
        kwargs: those of :class:`torchmetrics.Metric`.

    Attributes:
        skipped: how many images had a map or a score that is not finite, and were left out.

    Example:
        >>> import torch
        >>> metric = DeletionAUC(lambda images, target: images.mean((1, 2, 3)))
        >>> black = torch.zeros(1, 1, 8, 8)
        >>> metric.update(black + 1, torch.rand(1, 4, 4), torch.tensor([0]), black)
        >>> metric.compute()
        tensor(0.5000)

    """

    higher_is_better: bool = False

    _auc = staticmethod(deletion_auc)
