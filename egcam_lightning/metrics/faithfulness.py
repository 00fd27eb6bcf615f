"""How faithful the maps of a model are, image by image, and how sure that is for images like these."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from egcam_lightning.explain.estimator import ExpectedGradCAM
from egcam_lightning.explain.explanation import Explanation
from egcam_lightning.explain.isolation import isolated
from egcam_lightning.metrics.functional import blurred, deletion_auc, infidelity, insertion_auc
from egcam_lightning.metrics.functional.completeness import completeness_terms
from egcam_lightning.seeding import generator_for

_RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A metric's value over images, and where it would lie over other images of the kind.

    Attributes:
        key: what the metric is logged under.
        mean: its value: the mean over the images, or pooled over them.
        low: lower end of the 95 % interval.
        high: upper end.
        num_images: images that have a value.

    """

    key: str
    mean: float
    low: float
    high: float
    num_images: int


def estimate(key: str, values: Tensor, weights: Tensor | None = None, *, seed: int = 0) -> Estimate | None:
    """The ratio of two sums over images, with a 95 % interval by the bootstrap (percentiles of 2,000 resamples).

    Of a few dozen images such an interval is slightly narrow: of 32 it holds the true mean in about 93 of 100 cases.

    Args:
        key: what the metric is logged under.
        values: ``(N,)``, one number an image; those that are not finite are left out.
        weights: ``(N,)``, what they are divided by once both are summed; ``None`` for their mean.
        seed: of the resamples.

    Returns:
        The estimate; ``None`` of fewer than two images.

    Example:
        >>> estimate("infidelity", torch.tensor([0.2, 0.2, 0.2, torch.nan]))
        Estimate(key='infidelity', mean=0.2..., low=0.2..., high=0.2..., num_images=3)

    """
    values = values.detach().cpu().double()
    weights = torch.ones_like(values) if weights is None else weights.detach().cpu().double()
    finite = values.isfinite() & weights.isfinite()
    values, weights = values[finite], weights[finite]
    count = len(values)
    if count < 2 or not weights.sum() > 0:
        return None
    drawn = torch.randint(count, (_RESAMPLES, count), generator=generator_for(seed, 17))
    ratios = values[drawn].sum(1) / weights[drawn].sum(1)
    low, high = ratios[ratios.isfinite()].quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(key, float(values.sum() / weights.sum()), low, high, count)


def faithfulness(
    explainer: ExpectedGradCAM, images: Tensor, explanation: Explanation, target: Tensor | None = None
) -> dict[str, Tensor]:
    """Measure each map.

    Cost: 36 forward passes an image.

    Args:
        explainer: what has explained the images.
        images: ``(B, C, H, W)``, as the model takes them.
        explanation: of these images.
        target: what was explained, where that are sets of classes; ``None`` for the explanation's classes.

    Returns:
        ``(B,)`` each: ``infidelity``, ``insertion_auc``, ``deletion_auc``, and ``missing`` and ``difference``, whose
        sums' ratio is the completeness gap.

    """
    target = explanation.target if target is None else target
    scores = explainer.bind(images, target)
    rows = torch.arange(len(images), device=images.device)
    replacement = blurred(images.float())

    def score(points: Tensor, which: Tensor) -> Tensor:
        return scores(points, which, False)

    def probability(points: Tensor, which: Tensor) -> Tensor:
        return scores(points, which, True)

    with torch.no_grad(), isolated(explainer.model, seed=explainer.seed):
        maps = explanation.attribution
        inserted = insertion_auc(probability, images, maps, rows, replacement=replacement)
        deleted = deletion_auc(probability, images, maps, rows, replacement=replacement)
        missed = infidelity(score, images, maps, rows, scores=explanation.score, replacement=replacement)
    missing, difference = completeness_terms(maps, explanation.score, explanation.baseline_score, explanation.off_grid)
    return {
        "infidelity": missed,
        "insertion_auc": inserted,
        "deletion_auc": deleted,
        "missing": missing,
        "difference": difference,
    }


def estimate_faithfulness(
    explainer: ExpectedGradCAM, images: Tensor, baselines: Tensor | None, target: Tensor | None, *, seed: int = 0
) -> tuple[Estimate, ...]:
    """Explain images, and say how faithful the maps are: completeness gap, infidelity, insertion and deletion AUC.

    Args:
        explainer: the explainer.
        images: ``(B, C, H, W)``, as the model takes them; some dozens.
        baselines: ``(R, C, H, W)``, as the explainer takes them.
        target: ``(B,)`` int64, ``(B, classes)`` bool, or ``None`` for the predicted class.
        seed: of the resamples.

    Returns:
        An estimate a metric; one that has no value is left out.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        ... )
        >>> found = estimate_faithfulness(ExpectedGradCAM(model), torch.rand(4, 1, 8, 8), torch.rand(4, 1, 8, 8), None)
        >>> [one.key for one in found]
        ['completeness_gap', 'infidelity', 'insertion_auc', 'deletion_auc']

    """
    explanation = explainer(images, baselines, target)
    values = faithfulness(explainer, images, explanation, target)
    missing, difference = values.pop("missing"), values.pop("difference")
    gap = estimate("completeness_gap", missing, difference, seed=seed)
    means = [estimate(key, one, seed=seed) for key, one in values.items()]
    return tuple(one for one in (gap, *means) if one is not None)
