"""How metrics reach a model: through one callable from images to scores, never through the model itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from egcam_lightning.explain.chunking import Chunks

ScoreFunction = Callable[[Tensor, Tensor], Tensor]
"""``(images (N, C, H, W), target (N,)) -> scores (N,)``: the score of each image for its own target."""

ExplainFunction = Callable[[Tensor, Tensor], Tensor]
"""``(images (N, C, H, W), target (N,)) -> signed maps (N, h, w)``."""


def class_scores(model: nn.Module | Callable[[Tensor], Tensor], *, softmax: bool = False) -> ScoreFunction:
    """Make a score function of a classifier.

    The model is called as it is: put it into eval mode first.

    Args:
        model: from images ``(N, C, H, W)`` to logits ``(N, K)``.
        softmax: give probabilities (what insertion and deletion want) instead of logits (what infidelity wants).

    Returns:
        The score function, ``(images (N, C, H, W), target (N,)) -> (N,)`` in float32.

    Raises:
        ValueError: when called, where the model gives no ``(N, K)`` logits or a target is not in ``[0, K)``.

    Example:
        >>> import torch
        >>> score = class_scores(torch.nn.Flatten(), softmax=True)
        >>> score(torch.zeros(2, 1, 1, 4), torch.tensor([0, 3]))
        tensor([0.2500, 0.2500])

    """

    def score(images: Tensor, target: Tensor) -> Tensor:
        logits = model(images)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            seen = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"class_scores needs a model that gives logits of shape (N, K), got {seen}; "
                "write your own function (images, target) -> scores (N,) for other outputs."
            )
        # Asked of a device in one question, as this is done for each chunk.
        low, high = torch.stack(target.aminmax()).tolist() if target.numel() else (0, 0)
        if not 0 <= low <= high < logits.shape[1]:
            raise ValueError(
                f"targets must be in [0, {logits.shape[1]}), the classes of the model, got values from {low} to {high}."
            )
        logits = logits.float()
        return (logits.softmax(1) if softmax else logits).gather(1, target[:, None])[:, 0]

    return score


def over_points(
    evaluate: Callable[[Tensor, Tensor], Tensor], num_points: int, target: Tensor, chunk_size: int | None, at_once: int
) -> Tensor:
    """Evaluate every point of every image, in chunks that are halved where memory runs out.

    Args:
        evaluate: ``(point (n,), image (n,)) -> values (n,)``, where both arguments are indices.
        num_points: P, how many points an image has.
        target: ``(B,)``; gives the number of images and the device.
        chunk_size: how many points go through the model at once; ``None`` for ``at_once``.
        at_once: how many serve the machine well.

    Returns:
        ``(B, P)`` float32.

    Raises:
        ValueError: where ``num_points`` or ``chunk_size`` is no positive number, or ``evaluate`` gives another shape.

    """
    if num_points < 1:
        raise ValueError(f"the number of perturbations, steps or samples must be at least 1, got {num_points}.")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, or None to choose by the images' size, got {chunk_size}.")
    num_images = len(target)
    # Points are the slow index, so that a chunk of all images is one point of each.
    points = torch.arange(num_points * num_images, device=target.device)
    values = torch.empty(len(points), device=target.device)

    def one(chunk: slice) -> None:
        part = points[chunk]
        value = evaluate(part // num_images, part % num_images)
        if not isinstance(value, Tensor) or value.shape != part.shape:
            seen = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"the score function must return one score per image, shape {tuple(part.shape)}, got {seen}; "
                "for logits (N, K) write logits.gather(1, target[:, None])[:, 0], or use class_scores(model)."
            )
        values[chunk] = value.detach().float()

    Chunks().run(len(points), chunk_size or at_once, one)
    return values.view(num_points, num_images).T
