"""What an audit is given, checked before anything is computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from egcam_lightning.explain.outputs import describe
from egcam_lightning.explain.scores import num_classes


def check_audited(images: Any, labels: Any, baselines: Any) -> None:
    """Raise unless images, labels and baselines can be audited.

    Args:
        images: ``(N, C, H, W)``.
        labels: ``(N,)`` integers, or ``None``.
        baselines: ``(R, C, H, W)``, or ``None``.

    Raises:
        ValueError: where they cannot; says what to write instead.

    Example:
        >>> check_audited(torch.zeros(2, 3, 8, 8), torch.zeros(2, 5), None)
        Traceback (most recent call last):
        ...
        ValueError: No audit: the labels have the shape (2, 5), several for each image. An audit pastes patches ...

    """
    if isinstance(images, (list, tuple)):
        sizes = sorted({tuple(image.shape) for image in images if isinstance(image, Tensor)})
        raise ValueError(
            f"No audit: expected images as one tensor (images, channels, height, width), but got a list of "
            f"{len(images)} of the shapes {sizes[:4]}. "
            + (
                "Patches are pasted from image to image, which takes one size: resize them, as a validation transform "
                "does."
                if len(sizes) > 1
                else "Write torch.stack(images)."
            )
        )
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.numel():
        raise ValueError(
            f"No audit: expected images of shape (images, channels, height, width), but got {describe(images)}."
        )
    if baselines is not None and (not isinstance(baselines, Tensor) or baselines.shape[1:] != images.shape[1:]):
        raise ValueError(
            f"No audit: expected baselines of the images' shape {tuple(images.shape[1:])}, but got "
            f"{describe(baselines)}. Leave them out, and the audited images serve."
        )
    if labels is None:
        return
    if not isinstance(labels, Tensor):
        raise ValueError(
            f"No audit: expected labels as a tensor, one integer an image, but got {describe(labels)}. Write "
            "torch.tensor(labels)."
        )
    if labels.ndim != 1 and labels.shape[:1] == images.shape[:1]:
        many = "several for each image" if labels.ndim == 2 else "one for each place"
        raise ValueError(
            f"No audit: the labels have the shape {tuple(labels.shape)}, {many}. An audit pastes patches and looks "
            "whether the one class that the model calls an image turns: of several labels, or of a segmentation, it is "
            "not known what should turn."
        )
    if labels.is_floating_point():
        raise ValueError(
            "No audit: the labels are not integers but values, as of a regression, which calls no image by a class. "
            "Write labels.long() where they are classes."
        )
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"No audit: expected a label for each of {len(images)} images, but got labels of shape "
            f"{tuple(labels.shape)}."
        )


def check_classifier(output: Any, labels: Tensor | None) -> None:
    """Raise unless a model's output for a few images is one of classes, and the labels are among these.

    Args:
        output: what the model gives.
        labels: ``(N,)``, or ``None``.

    Raises:
        ValueError: where it is not.

    """
    if not isinstance(output, Tensor) or output.ndim not in (1, 2):
        what = "as of a segmentation" if isinstance(output, Tensor) and output.ndim > 2 else "in which no logits are"
        raise ValueError(
            f"No audit: expected logits of shape (images, classes), but the model gives {describe(output)}, {what}. "
            "Pass `output_key` or a `forward_fn` where another part of it holds the logits of a class."
        )
    if labels is not None and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes(output):
        raise ValueError(
            f"No audit: the labels go from {int(labels.min())} to {int(labels.max())}, but the model's output, "
            f"{describe(output)}, has {num_classes(output)} classes. "
            "Is it a regression? That calls no image by a class."
        )


def two_columns(logits: Tensor) -> Tensor:
    """Logits ``(n, classes)``; of a single logit those of both classes.

    Example:
        >>> two_columns(torch.tensor([1.5]))
        tensor([[0.0000, 1.5000]])

    """
    if logits.ndim == 2 and logits.shape[1] > 1:
        return logits
    return torch.stack([torch.zeros_like(logits.reshape(-1)), logits.reshape(-1)], 1)
