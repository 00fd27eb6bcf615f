"""What an explainer is given, checked before anything is computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from egcam_lightning.explain.perturbation import Perturbation
from egcam_lightning.explain.sampling import Draws
from egcam_lightning.explain.scores import OutputScore


def as_tuple(value: Any) -> tuple[Any, ...]:
    """As captum does: one of them needs no tuple, and ``None`` is none."""
    return () if value is None else value if isinstance(value, tuple) else (value,)


def without_history(values: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Values that a gradient may be taken of, whatever they come from.

    Args:
        values: images, or baselines.
        dtype: of the images, for baselines in another precision, as a callback keeps them; ``None`` for their own.

    Example:
        >>> without_history(torch.zeros(1, dtype=torch.float16), torch.float32).dtype
        torch.float32

    """
    # Inference tensors cannot be saved for a gradient; a clone made here is an ordinary tensor.
    values = values.detach().clone() if values.is_inference() else values.detach()
    both = dtype is not None and dtype.is_floating_point and values.is_floating_point()
    return values.to(dtype) if both else values


def check_inputs(
    perturbation: Perturbation,
    inputs: Tensor,
    baselines: Tensor | None,
    others: tuple[Any, ...],
    draws: Draws | None,
) -> None:
    """Raise unless images, baselines, other inputs and draws fit each other.

    Args:
        perturbation: says whether baselines are needed.
        inputs: ``(B, C, H, W)``.
        baselines: ``(R, C, H, W)``, or ``None``.
        others: the model's other inputs; tensors have B rows.
        draws: for B images, or ``None``.

    Raises:
        ValueError: where they do not.

    """
    if inputs.ndim < 4 or len(inputs) == 0:
        raise ValueError(f"Expected `inputs` of shape (images, channels, *size), but got {tuple(inputs.shape)}.")
    for other in others:
        if isinstance(other, Tensor) and other.shape[:1] != inputs.shape[:1]:
            raise ValueError(
                f"Expected tensors of `additional_forward_args` to have {len(inputs)} rows, one per image, but got the "
                f"shape {tuple(other.shape)}. Give one that is the same for all images to the model in `forward_fn`."
            )
    rows = 1
    if perturbation.needs_baselines:
        if baselines is None or len(baselines) == 0:
            raise ValueError(
                "Expected `baselines`, images from the training data, since the perturbation's baseline is 'data'. "
                "Pass some, or a perturbation with baseline='zeros'."
            )
        if baselines.shape[1:] != inputs.shape[1:]:
            raise ValueError(
                f"Expected `baselines` of the inputs' shape {tuple(inputs.shape[1:])}, but got "
                f"{tuple(baselines.shape[1:])}."
            )
        rows = len(baselines)
    if draws is None:
        return
    if draws.place.shape[1] != len(inputs):
        raise ValueError(
            f"Expected draws for {len(inputs)} images, but got them for {draws.place.shape[1]} "
            f"(shape {tuple(draws.place.shape)}, draws first)."
        )
    low, high = int(draws.baseline_index.min()), int(draws.baseline_index.max())
    if perturbation.baseline != "none" and not 0 <= low <= high < rows:
        raise ValueError(f"Expected `baseline_index` between 0 and {rows - 1}, the rows of the baselines.")


def as_targets(
    target: Tensor | int | None, output: Any, count: int, device: torch.device, score: OutputScore
) -> Tensor:
    """What is explained of each image.

    Args:
        target: one class for all, ``(count,)`` int64, ``(count, classes)`` bool, or ``None`` for the prediction.
        output: the model's output for the images.
        count: how many images there are.
        device: where they are.
        score: what is explained.

    Returns:
        ``(count,)`` int64, or ``(count, classes)`` bool.

    Raises:
        ValueError: where the output or the target is none that the score takes.

    """
    if target is None:
        score.check(output, None)
        return score.predict(output).clamp(min=0)
    targets = torch.as_tensor(target, device=device)
    if targets.ndim == 2 and targets.dtype == torch.bool and len(targets) == count:
        score.check(output, targets)
        return targets
    if targets.is_floating_point() or targets.ndim > 1 or (targets.ndim == 1 and len(targets) != count):
        raise ValueError(
            f"Expected `target` to be an integer, integers of shape ({count},) or bool of shape ({count}, classes), "
            f"but got {targets.dtype} of shape {tuple(targets.shape)}."
        )
    targets = targets.long().expand(count)
    score.check(output, targets)
    return targets
