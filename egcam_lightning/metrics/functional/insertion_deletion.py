"""Insertion and deletion: how fast does the score come or go when pixels do, the most relevant first?"""

from __future__ import annotations

import torch
from torch import Tensor

from egcam_lightning.explain.chunking import images_at_once
from egcam_lightning.metrics.functional._maps import check_images, check_replacement, few_at_once, resize, where_finite
from egcam_lightning.metrics.functional._protocol import ScoreFunction, over_points


def _mean_score(
    score_fn: ScoreFunction,
    images: Tensor,
    attribution: Tensor,
    target: Tensor,
    num_steps: int,
    chunk_size: int | None,
    replacement: Tensor | None,
    *,
    insert: bool,
) -> Tensor:
    """Mean score ``(B,)`` while the most relevant pixels are inserted, or deleted."""
    attribution, target = check_images(images, attribution, target)
    replacement = check_replacement(images, replacement)
    few = few_at_once(images[:, 0])
    if len(images) > few:  # ranks of pixels take more memory than the pixels
        parts = zip(*(torch.split(tensor, few) for tensor in (images, attribution, target, replacement)), strict=True)
        return torch.cat(
            [_mean_score(score_fn, x, a, t, num_steps, chunk_size, r, insert=insert) for x, a, t, r in parts]
        )
    size = tuple(images.shape[2:])
    order = resize(attribution, size).flatten(1).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1).view(-1, *size)
    # Midpoints: with equal weights they are the area under the curve, and no pass goes to the two ends of it.
    shares = (torch.arange(num_steps, device=images.device) + 0.5) / num_steps
    counts = (shares * order.shape[1]).round().long()

    def evaluate(point: Tensor, image: Tensor) -> Tensor:
        relevant = (rank[image] < counts[point].view(-1, *[1] * len(size)))[:, None]
        mixed = torch.where(relevant == insert, images[image].float(), replacement[image])
        return score_fn(mixed.to(images.dtype), target[image])

    with torch.no_grad():
        values = over_points(evaluate, num_steps, target, chunk_size, images_at_once(images)).mean(1)
    return where_finite(values, attribution)


def insertion_auc(
    score_fn: ScoreFunction,
    images: Tensor,
    attribution: Tensor,
    target: Tensor,
    *,
    num_steps: int = 12,
    chunk_size: int | None = None,
    replacement: Tensor | None = None,
) -> Tensor:
    """Mean score of the target while pixels are put into a blurred image, the most relevant first; higher is better.

    The area under the curve by the midpoint rule: the mean over shares of ``(k + 1/2) / num_steps`` of the pixels.
    (Petsiuk et al. step pixel by pixel and use the trapezoid rule; both tend to the same integral.) Ties, and so a
    constant map, are put in from the top left corner on.

    Range: [0, 1] for probabilities. Cost: ``num_steps`` forward passes per image. Paper: Petsiuk et al., *RISE:
    Randomized Input Sampling for Explanation of Black-box Models*, BMVC 2018.

    Args:
        score_fn: ``(images (N, C, H, W), target (N,)) -> (N,)``, the probability of the target.
        images: ``(B, C, H, W)``.
        attribution: ``(B, h, w)``, signed, at any resolution up to the image's.
        target: ``(B,)`` int64.
        num_steps: the number of points on the curve.
        chunk_size: how many images go through ``score_fn`` at once; ``None`` chooses by their size.
        replacement: ``(B, C, H, W)``, what pixels are put into; ``None`` for a blurred copy.

    Returns:
        ``(B,)`` float32; NaN where the map is not finite.

    Raises:
        TypeError: where images, maps or targets are not of the right kind.
        ValueError: where their shapes do not fit, or the score function does not give ``(N,)``.

    Example:
        >>> import torch
        >>> mean = lambda images, target: images.mean((1, 2, 3))
        >>> image = torch.zeros(1, 1, 4, 4)
        >>> image[..., :2] = 1.0
        >>> insertion_auc(mean, image, image[:, 0], torch.tensor([0]), replacement=torch.zeros_like(image))
        tensor([0.3750])

    """
    return _mean_score(score_fn, images, attribution, target, num_steps, chunk_size, replacement, insert=True)


def deletion_auc(
    score_fn: ScoreFunction,
    images: Tensor,
    attribution: Tensor,
    target: Tensor,
    *,
    num_steps: int = 12,
    chunk_size: int | None = None,
    replacement: Tensor | None = None,
) -> Tensor:
    """Mean score of the target while pixels give way to a blurred copy, the most relevant first; lower is better.

    The mirror image of :func:`insertion_auc`, with the same steps, ties, range, cost and paper.

    Args:
        score_fn: ``(images (N, C, H, W), target (N,)) -> (N,)``, the probability of the target.
        images: ``(B, C, H, W)``.
        attribution: ``(B, h, w)``, signed, at any resolution up to the image's.
        target: ``(B,)`` int64.
        num_steps: the number of points on the curve.
        chunk_size: how many images go through ``score_fn`` at once; ``None`` chooses by their size.
        replacement: ``(B, C, H, W)``, what pixels give way to; ``None`` for a blurred copy.

    Returns:
        ``(B,)`` float32; NaN where the map is not finite.

    Raises:
        TypeError: where images, maps or targets are not of the right kind.
        ValueError: where their shapes do not fit, or the score function does not give ``(N,)``.

    Example:
        >>> import torch
        >>> mean = lambda images, target: images.mean((1, 2, 3))
        >>> image = torch.zeros(1, 1, 4, 4)
        >>> image[..., :2] = 1.0
        >>> deletion_auc(mean, image, image[:, 0], torch.tensor([0]), replacement=torch.zeros_like(image))
        tensor([0.1250])

    """
    return _mean_score(score_fn, images, attribution, target, num_steps, chunk_size, replacement, insert=False)
