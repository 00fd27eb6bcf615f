"""Metrics that ask the model, or its scores, whether a map is true of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from egcam_lightning.metrics._base import ExplanationMetric, MeanOverImages, bound
from egcam_lightning.metrics.functional._maps import check_maps, where_finite
from egcam_lightning.metrics.functional._protocol import ExplainFunction, ScoreFunction
from egcam_lightning.metrics.functional.completeness import completeness_terms
from egcam_lightning.metrics.functional.fidelity import block_effects, infidelity_of
from egcam_lightning.metrics.functional.insertion_deletion import deletion_auc, insertion_auc
from egcam_lightning.metrics.functional.sensitivity import max_sensitivity


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


class Infidelity(MeanOverImages):
    """How far the map is from saying what happens to the score when blocks of the image are blurred; lower is better.

    See :func:`~egcam_lightning.metrics.functional.infidelity` for the definition.

    Range: [0, 1], 0 is perfect and 1 no better than an empty map; [0, inf) with ``normalize=False``. Cost:
    ``num_perturbations`` forward passes an image, one more where ``scores`` is not given to ``update``. Paper: Yeh et
    al., *On the (In)fidelity and Sensitivity of Explanations*, NeurIPS 2019.

    Args:
        score_fn: ``(images (N, C, H, W), target (N,)) -> (N,)``, the score that the map explains, usually a logit; may
            be set later as an attribute.
        num_perturbations: the number of blocks.
        normalize: scale the map to fit and the value to [0, 1]; ``False`` for the definition of Yeh et al.
        seed: of the blocks; the same for every image, batch and rank.
        chunk_size: how many images go through ``score_fn`` at once; ``None`` chooses by their size.
        kwargs: those of :class:`torchmetrics.Metric`.

    Attributes:
        unaffected: how many images had a score that no block changed; their value is 1 (with ``normalize=True``).
        skipped: how many images had a map or a score that is not finite, and were left out.

    Example:
        >>> import torch
        >>> metric = Infidelity(lambda images, target: images.sum((1, 2, 3)))
        >>> metric.update(torch.rand(2, 1, 8, 8), torch.zeros(2, 4, 4), torch.tensor([0, 1]))
        >>> round(float(metric.compute()), 4)
        1.0

    """

    higher_is_better: bool = False
    is_differentiable: bool = True
    unaffected: Tensor

    def __init__(
        self,
        score_fn: ScoreFunction | None = None,
        num_perturbations: int = 16,
        normalize: bool = True,
        seed: int = 0,
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.score_fn = score_fn
        self.num_perturbations = num_perturbations
        self.normalize = normalize
        self.seed = seed
        self.chunk_size = chunk_size
        self.add_state("unaffected", torch.tensor(0), dist_reduce_fx="sum")

    def update(
        self,
        images: Tensor,
        attribution: Tensor,
        target: Tensor,
        scores: Tensor | None = None,
        replacement: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            images: ``(B, C, H, W)``.
            attribution: ``(B, h, w)``, signed.
            target: ``(B,)`` int64.
            scores: ``(B,)``, the scores of the images where they are known.
            replacement: ``(B, C, H, W)``, what a block is replaced by; ``None`` for a blurred copy.

        """
        predicted, drop = block_effects(
            bound(self.score_fn, self, "score_fn"),
            images,
            attribution,
            target,
            num_perturbations=self.num_perturbations,
            seed=self.seed,
            chunk_size=self.chunk_size,
            scores=scores,
            replacement=replacement,
        )
        values = where_finite(infidelity_of(predicted, drop, normalize=self.normalize), check_maps(attribution))
        self._add(values)
        self.unaffected = self.unaffected + (values.isfinite() & (drop == 0).all(1)).sum()


class _StepMetric(MeanOverImages):
    """What insertion and deletion share."""

    _auc: ClassVar[Callable[..., Tensor]]

    plot_upper_bound: float | None = 1.0

    def __init__(
        self,
        score_fn: ScoreFunction | None = None,
        num_steps: int = 16,
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

    Range: [0, 1]. Cost: ``num_steps`` forward passes an image. Paper: Petsiuk et al., *RISE: Randomized Input Sampling
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

    Range: [0, 1]. Cost: ``num_steps`` forward passes an image. Paper: Petsiuk et al., *RISE: Randomized Input Sampling
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


class MaxSensitivity(MeanOverImages):
    """Largest relative change of the map among images drawn from a small ball around the image; lower is better.

    See :func:`~egcam_lightning.metrics.functional.max_sensitivity` for the definition.

    Range: [0, inf). Cost: ``num_samples`` explanations an image. Paper: Yeh et al., *On the (In)fidelity and
    Sensitivity of Explanations*, NeurIPS 2019.

    Args:
        explain_fn: ``(images (N, C, H, W), target (N,)) -> (N, h, w)``; may be set later as an attribute.
        radius: of the ball, in units of the model's input; of whole numbers 1 at least.
        num_samples: how many images are drawn from it.
        seed: of the draws; the same noise for every image, batch and rank.
        chunk_size: how many images go through ``explain_fn`` at once; ``None`` for a batch.
        kwargs: those of :class:`torchmetrics.Metric`.

    Attributes:
        skipped: how many images had a map that is not finite, and were left out.

    Example:
        >>> import torch
        >>> metric = MaxSensitivity(lambda images, target: images.mean(1))
        >>> images = torch.ones(2, 3, 4, 4)
        >>> metric.update(images, images.mean(1), torch.tensor([0, 1]))
        >>> bool(metric.compute() <= 0.02)
        True

    """

    higher_is_better: bool = False

    def __init__(
        self,
        explain_fn: ExplainFunction | None = None,
        radius: float = 0.02,
        num_samples: int = 10,
        seed: int = 0,
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.explain_fn = explain_fn
        self.radius = radius
        self.num_samples = num_samples
        self.seed = seed
        self.chunk_size = chunk_size

    def update(self, images: Tensor, attribution: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            images: ``(B, C, H, W)``, of the type that ``explain_fn`` takes, of whole numbers too.
            attribution: ``(B, h, w)``, what ``explain_fn`` gives for the images.
            target: ``(B,)`` int64.

        """
        self._add(
            max_sensitivity(
                bound(self.explain_fn, self, "explain_fn"),
                images,
                attribution,
                target,
                radius=self.radius,
                num_samples=self.num_samples,
                seed=self.seed,
                chunk_size=self.chunk_size,
            )
        )
