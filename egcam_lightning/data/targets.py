"""Which class of each image is explained, or which set of classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from egcam_lightning.data.batch import LABEL_KEYS

if TYPE_CHECKING:
    from egcam_lightning.explain.scores import OutputScore

Target = str | int | Callable[..., Any]


def check_target(target: Any) -> None:
    """Raise unless ``target`` is one of the choices.

    Raises:
        ValueError: for anything else.

    """
    named = isinstance(target, str) and target in ("label", "predicted", "runner_up")
    if not named and not callable(target) and (isinstance(target, bool) or not isinstance(target, int)):
        raise ValueError(
            f"Expected `target` to be 'label', 'predicted', 'runner_up', a class or a callable, but got {target!r}."
        )


def known_targets(
    target: Target, labels: Tensor | None, count: int, output: Tensor, score: OutputScore
) -> Tensor | None:
    """What is explained of each image, as far as it can be said before the model has learnt anything.

    Args:
        target: what the user asked for.
        labels: ``(N,)`` int64 or ``(N, classes)`` bool, or ``None``.
        count: N.
        output: the model's output for some of the images, to see whether the labels are of its classes.
        score: what is explained.

    Returns:
        ``(N,)`` int64 or ``(N, classes)`` bool; ``None`` where the model has to be asked, see :func:`chosen_targets`.

    Raises:
        ValueError: where the runner-up is asked for and there are no labels, or no classes.

    """
    if isinstance(target, int):
        return torch.full((count,), target)
    if target == "runner_up":
        if labels is None or labels.ndim == 2:
            raise ValueError(
                "Expected labels for `target='runner_up'`, but found none in the batch: integers, one per image, "
                f"second in a tuple or under one of {', '.join(map(repr, LABEL_KEYS))}. Pass `label_key`, or write "
                "target='predicted'."
            )
        score.runner_up(output, labels[: len(output)].to(output.device))
    if target != "label" or labels is None or not score.takes_labels:
        return None
    if labels.ndim == 1:
        return labels
    return labels if _are_of_classes(labels, output, score) and bool(labels.any(1).all()) else None


def chosen_targets(target: Target, labels: Tensor | None, output: Tensor, score: OutputScore) -> Tensor:
    """What is explained of each image, once the model has an opinion.

    Args:
        target: what the user asked for.
        labels: ``(n,)`` int64 or ``(n, classes)`` bool, or ``None``.
        output: the model's output for these images.
        score: what is explained.

    Returns:
        ``(n,)`` int64, or ``(n, classes)`` bool.

    Raises:
        ValueError: where a callable returns something else.

    """
    if callable(target):
        targets = torch.as_tensor(target(output, labels)).to(output.device)
        of_sets = targets.dtype == torch.bool and targets.ndim == 2 and len(targets) == len(output)
        if not of_sets and (targets.shape != output.shape[:1] or targets.is_floating_point()):
            raise ValueError(
                f"Expected `target` to return a class for each of {len(output)} images, integers of shape "
                f"({len(output)},), or bool of shape ({len(output)}, classes), but got {targets.dtype} of shape "
                f"{tuple(targets.shape)}. Write one such as `lambda output, labels: output.argmin(1)`."
            )
        score.check(output, targets)
        return targets
    if target == "runner_up":
        assert labels is not None
        return score.runner_up(output, labels)
    predicted = score.predict(output).clamp(min=0)
    if target != "label" or labels is None or labels.ndim == 1 or not _are_of_classes(labels, output, score):
        return predicted
    top = torch.zeros_like(labels).scatter(1, predicted[:, None], True)
    return torch.where(labels.any(1, keepdim=True), labels, top)  # of an image without labels the top class


def _are_of_classes(labels: Tensor, output: Tensor, score: OutputScore) -> bool:
    """Whether zeros and ones ``(n, classes)`` are labels of the model's classes, and not of something else."""
    return score.takes_sets and output.ndim == 2 and labels.shape[1] == output.shape[1]
