"""What is explained: one number an image, from the model's output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from egcam_lightning.explain.perturbation import check_choice

ScoreName = Literal["logit", "log_probability", "probability", "margin"]
Score = Callable[[Tensor, Tensor], Tensor]

# What image classifiers call their logits, in the order in which they are looked for.
_OUTPUT_KEYS = ("logits", "output", "outputs", "out", "pred", "preds", "prediction", "predictions", "y_hat")


def select_output(output: Any, key: str | int | None = None) -> Any:
    """Find the logits in whatever a model returns.

    Args:
        output: a tensor, mapping, tuple, list, or an object with attributes (a dataclass, a Hugging Face output).
        key: the key, attribute or position; ``None``: a tensor itself, else the usual names, else the first of a
            tuple.

    Returns:
        What was found, a tensor unless the key leads elsewhere.

    Raises:
        ValueError: where nothing is found; the message lists what is there.

    """
    if key is not None:
        if isinstance(output, (tuple, list)) and isinstance(key, int) and -len(output) <= key < len(output):
            return output[key]
        if isinstance(output, Mapping) and key in output:
            return output[key]
        if isinstance(key, str) and hasattr(output, key):
            return getattr(output, key)
        raise ValueError(f"The model's output has no {key!r}; it is {describe(output)}. Pass another `output_key`.")
    if isinstance(output, Tensor):
        return output
    for name in _OUTPUT_KEYS:
        if isinstance(output, Mapping):
            if name in output:
                return output[name]
        elif isinstance(getattr(output, name, None), Tensor):
            return getattr(output, name)
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0]
    if isinstance(output, Mapping):
        tensors = [value for value in output.values() if isinstance(value, Tensor)]
        if len(tensors) == 1:
            return tensors[0]
    raise ValueError(f"No logits found in the model's output, which is {describe(output)}. Pass `output_key`.")


def describe(value: Any) -> str:
    """Say what a value is, with shapes, for messages."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with keys {list(value)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of ({', '.join(describe(v) for v in value)})"
    return f"a {type(value).__name__}"


def num_classes(output: Tensor) -> int:
    """Number of classes of logits: ``C`` of ``(B, C)``; 2 of a single logit, ``(B,)`` or ``(B, 1)``."""
    return 2 if _is_binary(output) else output.shape[1]


def predicted_class(output: Tensor) -> Tensor:
    """``(B,)`` int64: the class with the largest logit; of a single logit, whether it is positive."""
    if _is_binary(output):
        return (output.reshape(-1) > 0).long()
    return output.argmax(1)


def as_score(score: ScoreName | Score) -> Score:
    """Turn a name into the function it stands for; a callable stays as it is.

    A score takes the model's output and the target ``(B,)`` and returns ``(B,)``. The named ones take logits
    ``(B, C)``, or the single logit of a binary model, ``(B,)`` or ``(B, 1)``: class 1 is explained by that logit,
    class 0 by its negative.

    Example:
        >>> import torch
        >>> as_score("margin")(torch.tensor([[1.0, 3.0, 0.0]]), torch.tensor([1]))
        tensor([2.])

    """
    if callable(score):
        return score
    check_choice("score", score, ScoreName)
    return _SCORES[score]


def check_rows(output: Any, count: int) -> None:
    """Raise unless ``output`` is a tensor with a row for each of ``count`` images."""
    if not isinstance(output, Tensor) or output.ndim == 0 or len(output) != count:
        raise ValueError(
            f"Expected the model's output for {count} images to be a tensor of shape ({count}, classes), but it is "
            f"{describe(output)}. Pass `output_key` to choose a part of it, or a `forward_fn` that returns such a one."
        )


def check_logits(output: Any, target: Tensor | None) -> None:
    """Raise unless ``output`` is ``(B, classes)``, or one logit an image, and every target is one of the classes."""
    if not isinstance(output, Tensor) or not (output.ndim == 2 or _is_binary(output)):
        raise ValueError(
            f"Expected the model's output to be logits of shape (images, classes), but it is {describe(output)}. "
            "Pass `output_key` to choose a part of it, or a callable `score` from (output, target) to one number an "
            "image."
        )
    if target is not None and target.numel():
        low, high = int(target.min()), int(target.max())
        if low < 0 or high >= num_classes(output):
            raise ValueError(
                f"Expected targets between 0 and {num_classes(output) - 1}, the classes of the model's output of shape "
                f"{tuple(output.shape)}, but got {low if low < 0 else high}."
            )


def _is_binary(output: Tensor) -> bool:
    return output.ndim == 1 or (output.ndim == 2 and output.shape[1] == 1)


def _signed(output: Tensor, target: Tensor) -> Tensor:
    return output.reshape(-1) * (2 * target - 1)


def _logit(output: Tensor, target: Tensor) -> Tensor:
    if _is_binary(output):
        return _signed(output, target)
    return output.gather(1, target[:, None])[:, 0]


def _log_probability(output: Tensor, target: Tensor) -> Tensor:
    if _is_binary(output):
        return logsigmoid(_signed(output, target))
    return _logit(output.log_softmax(1), target)


def _probability(output: Tensor, target: Tensor) -> Tensor:
    return _log_probability(output, target).exp()


def _margin(output: Tensor, target: Tensor) -> Tensor:
    if _is_binary(output):
        return _signed(output, target)
    others = output.scatter(1, target[:, None], float("-inf"))
    return _logit(output, target) - others.amax(1)


_SCORES: dict[str, Score] = {
    "logit": _logit,
    "log_probability": _log_probability,
    "probability": _probability,
    "margin": _margin,
}


def finite_rows(output: Tensor) -> Tensor:
    """``(B,)`` bool: the images whose output holds no NaN and no infinity."""
    return torch.isfinite(output.flatten(1) if output.ndim > 1 else output[:, None]).all(1)
