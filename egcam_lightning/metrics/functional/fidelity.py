"""Infidelity: does the map say how far the score falls when a part of the image is taken away?"""

from __future__ import annotations

import torch
from torch import Tensor

from egcam_lightning.explain.chunking import images_at_once
from egcam_lightning.metrics.functional._maps import (
    check_images,
    check_replacement,
    full_precision,
    lengths,
    spread,
    where_finite,
)
from egcam_lightning.metrics.functional._protocol import ScoreFunction, over_points

# The side of a block, as a share of the image's shorter side (and of a volume's depth): from a detail to most of an
# object.
_SIDES = (1 / 8, 1 / 2)


def random_blocks(size: tuple[int, ...], num_blocks: int, seed: int) -> Tensor:
    """Draw square blocks of random places and sizes, as masks; in volumes they fill the same share of the depth.

    Places and sizes come from a scrambled Sobol sequence: each block is uniform, and together they cover the image
    more evenly than independent ones would. They depend on the seed alone, so every image, batch and rank gets the
    same ones.

    Args:
        size: spatial size of the image, ``(H, W)`` or ``(D, H, W)``.
        num_blocks: P, how many blocks.
        seed: of the sequence.

    Returns:
        ``(P, *size)`` bool on the CPU, true inside the block.

    Example:
        >>> random_blocks((8, 8), 3, seed=0).flatten(1).sum(1).sqrt()  # their sides
        tensor([2., 3., 4.])

    """
    engine = torch.quasirandom.SobolEngine(len(size) + 1, scramble=True, seed=seed)  # type: ignore[no-untyped-call]
    draws = engine.draw(num_blocks).double()
    share = _SIDES[0] + (_SIDES[1] - _SIDES[0]) * draws[:, 0]
    blocks = torch.ones(num_blocks, *size, dtype=torch.bool)
    for axis, (length, whole) in enumerate(zip(size, lengths(size), strict=True)):
        side = (share * whole).round().clamp(min=1)
        # The centre is uniform over the image and the block is then pushed inside: the border is covered too.
        start = (draws[:, axis + 1] * length - side / 2).round().clamp(min=0).minimum(length - side)
        place = torch.arange(length)
        inside = (place >= start[:, None]) & (place < (start + side)[:, None])
        blocks &= inside.view(num_blocks, *(length if i == axis else 1 for i in range(len(size))))
    return blocks


@full_precision
def _sums_over(maps: Tensor, blocks: Tensor) -> Tensor:
    """Sum each map ``(B, H, W)`` over each block ``(P, H, W)``: ``(B, P)`` float32."""
    return maps.flatten(1).float() @ blocks.flatten(1).T.float()


def block_effects(
    score_fn: ScoreFunction,
    images: Tensor,
    attribution: Tensor,
    target: Tensor,
    *,
    num_perturbations: int = 12,
    seed: int = 0,
    chunk_size: int | None = None,
    scores: Tensor | None = None,
    replacement: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What the map predicts for every block of the image, and what replacing the block does.

    Args:
        score_fn: ``(images (N, C, H, W), target (N,)) -> (N,)``; the score that the map explains, usually a logit.
        images: ``(B, C, H, W)``.
        attribution: ``(B, h, w)``, signed; each cell is spread over its pixels and the map keeps its total.
        target: ``(B,)`` int64.
        num_perturbations: P, the number of blocks, and of forward passes per image.
        seed: of the blocks (see :func:`random_blocks`).
        chunk_size: how many images go through ``score_fn`` at once; ``None`` chooses by their size.
        scores: ``(B,)``, the scores of the images where they are known; ``None`` costs one more pass.
        replacement: ``(B, C, H, W)``, what a block is replaced by; ``None`` for a blurred copy.

    Returns:
        The map's sum over each block ``(B, P)``, and the drop of the score ``(B, P)``, both float32.

    Raises:
        TypeError: where images, maps or targets are not of the right kind.
        ValueError: where their shapes do not fit, or the score function does not give ``(N,)``.

    Example:
        >>> import torch
        >>> total = lambda images, target: images.sum((1, 2, 3))
        >>> image = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> black = torch.zeros_like(image)
        >>> predicted, drop = block_effects(total, image, image[:, 0], torch.tensor([0]), replacement=black)
        >>> torch.allclose(predicted, drop, atol=1e-5)
        True

    """
    attribution, target = check_images(images, attribution, target)
    replacement = check_replacement(images, replacement)
    if num_perturbations < 1:
        raise ValueError(f"num_perturbations must be at least 1, got {num_perturbations}.")
    blocks = random_blocks(tuple(images.shape[2:]), num_perturbations, seed).to(images.device)
    predicted = _sums_over(spread(attribution, tuple(images.shape[2:])), blocks)

    def evaluate(point: Tensor, image: Tensor) -> Tensor:
        mixed = torch.where(blocks[point, None], replacement[image], images[image].float())
        return score_fn(mixed.to(images.dtype), target[image])

    at_once = images_at_once(images)
    with torch.no_grad():
        if scores is None:
            scores = over_points(
                lambda _, image: score_fn(images[image], target[image]), 1, target, chunk_size, at_once
            )[:, 0]
        elif scores.shape != target.shape:
            raise ValueError(f"scores must have shape {tuple(target.shape)}, got {tuple(scores.shape)}.")
        drop = scores.to(images.device).float()[:, None] - over_points(
            evaluate, num_perturbations, target, chunk_size, at_once
        )
    return predicted, drop


def infidelity_of(predicted: Tensor, drop: Tensor, *, normalize: bool = True) -> Tensor:
    """Infidelity from what :func:`block_effects` gave.

    Args:
        predicted: ``(B, P)``, the map's sum over each block.
        drop: ``(B, P)``, the drop of the score when the block is replaced.
        normalize: see :func:`infidelity`.

    Returns:
        ``(B,)``; NaN where something is not finite.

    Example:
        >>> import torch
        >>> infidelity_of(torch.tensor([[1.0, 2.0], [-1.0, -2.0]]), torch.tensor([[2.0, 4.0], [2.0, 4.0]]))
        tensor([0., 1.])

    """
    if not normalize:
        return where_finite((predicted - drop).square().mean(1), predicted, drop)
    tiny = torch.finfo(drop.dtype).tiny
    # The value does not depend on either scale, so both are taken out first: squares neither overflow nor vanish.
    p = predicted / predicted.abs().amax(1, keepdim=True).clamp(min=tiny)
    q = drop / drop.abs().amax(1, keepdim=True).clamp(min=tiny)
    scale = ((p * q).sum(1) / p.square().sum(1).clamp(min=tiny)).clamp(min=0)
    value = (scale[:, None] * p - q).square().mean(1) / q.square().mean(1).clamp(min=tiny)
    # Without any effect there is nothing to be faithful to: no better than an empty map.
    return where_finite(torch.where(drop.abs().amax(1) > 0, value.clamp(max=1), 1.0), predicted, drop)


def infidelity(
    score_fn: ScoreFunction,
    images: Tensor,
    attribution: Tensor,
    target: Tensor,
    *,
    num_perturbations: int = 12,
    normalize: bool = True,
    seed: int = 0,
    chunk_size: int | None = None,
    scores: Tensor | None = None,
    replacement: Tensor | None = None,
) -> Tensor:
    r"""Infidelity of each map; lower is better.

    Square blocks at random places are replaced by a blurred copy. With :math:`p` the map's sum over a block and
    :math:`q` the drop of the score, it is :math:`\operatorname{mean}((\beta p - q)^2) / \operatorname{mean}(q^2)`,
    where :math:`\beta \ge 0` is the least-squares scale: 0 is perfect, 1 no better than an empty map. The scale is
    not allowed to be negative, because an inverted map must not score well; captum's ``normalize=True`` allows that,
    and does not divide by the mean of :math:`q^2`.

    With ``normalize=False`` it is the definition of Yeh et al., :math:`\operatorname{mean}((p - q)^2)`, in squared
    units of the score and without an upper bound. It alone can show what completeness does, because
    :math:`\beta` absorbs what completeness fixes.

    Range: [0, 1], or [0, inf) with ``normalize=False``. Cost: ``num_perturbations`` forward passes per image, one
    more where ``scores`` is not given. Paper: Yeh et al., *On the (In)fidelity and Sensitivity of Explanations*,
    NeurIPS 2019.

    Args:
        score_fn: ``(images (N, C, H, W), target (N,)) -> (N,)``; the score that the map explains, usually a logit.
        images: ``(B, C, H, W)``.
        attribution: ``(B, h, w)``, signed, at any resolution up to the image's.
        target: ``(B,)`` int64.
        num_perturbations: the number of blocks.
        normalize: scale the map to fit, and the value to [0, 1].
        seed: of the blocks; the same for every image, batch and rank.
        chunk_size: how many images go through ``score_fn`` at once; ``None`` chooses by their size.
        scores: ``(B,)``, the scores of the images where they are known.
        replacement: ``(B, C, H, W)``, what a block is replaced by; ``None`` for a blurred copy.

    Returns:
        ``(B,)`` float32. 1 for an empty map, and where no block changes the score; NaN where the map or a score is
        not finite.

    Raises:
        TypeError: where images, maps or targets are not of the right kind.
        ValueError: where their shapes do not fit, or the score function does not give ``(N,)``.

    Example:
        >>> import torch
        >>> total = lambda images, target: images.sum((1, 2, 3))
        >>> image = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> infidelity(total, image, torch.zeros(1, 4, 4), torch.tensor([0]))
        tensor([1.])

    """
    predicted, drop = block_effects(
        score_fn,
        images,
        attribution,
        target,
        num_perturbations=num_perturbations,
        seed=seed,
        chunk_size=chunk_size,
        scores=scores,
        replacement=replacement,
    )
    return where_finite(infidelity_of(predicted, drop, normalize=normalize), attribution)
