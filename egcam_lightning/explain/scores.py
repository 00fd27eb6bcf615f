"""What is explained: one number per image, from the model's output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from egcam_lightning.explain.outputs import describe
from egcam_lightning.explain.perturbation import check_choice

ScoreName = Literal["logit", "log_probability", "probability", "margin", "region", "value"]
Score = Callable[[Tensor, Tensor], Tensor]


def num_classes(output: Tensor) -> int:
    """Number of classes of logits: ``C`` of ``(B, C)``; 2 of a single logit, ``(B,)`` or ``(B, 1)``."""
    return 2 if _is_binary(output) else output.shape[1]


def predicted_class(output: Tensor) -> Tensor:
    """``(B,)`` int64: the class with the largest logit; of a single logit, whether it is positive."""
    if _is_binary(output):
        return (output.reshape(-1) > 0).long()
    return output.argmax(1)


class OutputScore:
    """A score and what goes with it: which outputs and targets it takes, and what the model is said to predict.

    Calling it takes the model's output and the target ``(B,)`` int64, or ``(B, classes)`` bool for sets of classes,
    and returns ``(B,)``.

    Args:
        function: from (output, target) to ``(B,)``.

    Attributes:
        takes_labels: whether the label of an image may be its target.
        takes_sets: whether a set of classes may be.
        looks_at_images: whether what is explained depends on the output for the images themselves.
        linear: whether it is linear in the output.

    """

    takes_labels = True
    takes_sets = False
    looks_at_images = False

    def __init__(self, function: Score) -> None:
        self._function = function
        self.linear = function in (_logit, _value)

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """``(B,)``: the score of each image."""
        return self._function(output, target)

    def bind(self, output: Tensor, target: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The score of points that belong to images: from (output, rows of the images) to one number a point.

        Args:
            output: the model's output for the images themselves.
            target: what is explained of each.

        """
        del output
        return lambda points, rows: self(points, target[rows])

    def check(self, output: Any, target: Tensor | None) -> None:
        """Raise unless the output and the targets are such as the score takes."""

    def predict(self, output: Tensor) -> Tensor:
        """``(B,)`` int64: what the model predicts, -1 where that cannot be said."""
        return torch.full((len(output),), -1, device=output.device)

    def runner_up(self, output: Tensor, labels: Tensor) -> Tensor:
        """``(B,)`` int64: the class other than the label that the model prefers.

        Raises:
            ValueError: where the score is not of classes.

        """
        raise ValueError(
            "Expected a score of classes for `target='runner_up'`, such as score='logit': what is explained here has "
            "no wrong class. Pass a class or a column as `target`, or a callable from (output, labels)."
        )

    @property
    def takes_some_images(self) -> bool:
        """Whether it may be asked of some of the images alone, and of the others later."""
        return True

    @property
    def shown(self) -> OutputScore:
        """The score that insertion and deletion follow: a probability, where there is one."""
        return self


class LogitScore(OutputScore):
    """A score of class logits: the named ones."""

    takes_sets = True

    def check(self, output: Any, target: Tensor | None) -> None:
        """Raise unless the output is ``(B, classes)`` or one logit per image, and every target is a class."""
        check_logits(output, target)

    def predict(self, output: Tensor) -> Tensor:
        """The class with the largest logit."""
        return predicted_class(output)

    def runner_up(self, output: Tensor, labels: Tensor) -> Tensor:
        """The wrong class with the largest logit."""
        if _is_binary(output):
            return 1 - labels
        return output.float().scatter(1, labels[:, None], -torch.inf).argmax(1)

    @property
    def shown(self) -> OutputScore:
        """The target's probability."""
        return LogitScore(_probability)


class ValueScore(OutputScore):
    """A score that is the output itself, as in regression: ``(B,)``, or column ``target`` of ``(B, values)``.

    Labels are values too, and choose no column.
    """

    takes_labels = False

    def __init__(self) -> None:
        super().__init__(_value)

    def check(self, output: Any, target: Tensor | None) -> None:
        """Raise unless the output is ``(B,)`` or ``(B, values)``, and every target is one of its columns."""
        check_logits(output, None if isinstance(output, Tensor) and _is_binary(output) else target)


class RegionScore(OutputScore):
    """A score of dense outputs, as in segmentation: the mean logit of a class over a region of the image.

    Args:
        mask: ``(B, *size)`` bool, the region of each image; ``None`` for where the model itself predicts the class
            (the whole image, where that is nowhere). The region stays the same along an image's paths.
        probability: the mean probability instead of the mean logit.

    """

    looks_at_images = True

    def __init__(self, mask: Tensor | None = None, probability: bool = False) -> None:
        super().__init__(self._of_own_region)
        self._mask = mask
        self._probability = probability

    def check(self, output: Any, target: Tensor | None) -> None:
        """Raise unless the output is ``(B, classes, *size)``, and every target is a class."""
        if not isinstance(output, Tensor) or output.ndim < 3:
            raise ValueError(
                f"Expected the model's output to be (images, classes, *size) for a region's score, but it is "
                f"{describe(output)}. Pass `output_key` to choose a part of it, or score='logit' for one logit a class."
            )
        if self._mask is not None and self._mask.shape[1:] != output.shape[2:]:
            raise ValueError(
                f"Expected the mask of a region's score to be (images, *size), with the size of the model's output, "
                f"{tuple(output.shape[2:])}, but its shape is {tuple(self._mask.shape)}. Resize it, as with "
                "torch.nn.functional.interpolate."
            )
        check_logits(output.flatten(2).mean(2), target)

    def predict(self, output: Tensor) -> Tensor:
        """The class that most positions have, other than class 0 where there is one."""
        predicted = output.argmax(1).flatten(1)
        # Counted class by class: adding by index is not deterministic on a CUDA device.
        counts = torch.stack([(predicted == c).sum(1) for c in range(output.shape[1])], 1).float()
        counts[:, 0] *= 0.5 / predicted.shape[1]  # by convention the background
        return counts.argmax(1)

    def bind(self, output: Tensor, target: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The mean over each image's own region."""
        region = self._region(output, target)
        return lambda points, rows: self._mean(points, target[rows], region[rows])

    @property
    def takes_some_images(self) -> bool:
        """Not where each has a region that it was given."""
        return self._mask is None or len(self._mask) == 1

    @property
    def shown(self) -> OutputScore:
        """The mean probability over the region."""
        return RegionScore(self._mask, probability=True)

    def _region(self, output: Tensor, target: Tensor) -> Tensor:
        if self._mask is not None:
            if len(self._mask) not in (1, len(output)):
                raise ValueError(
                    f"Expected the mask of a region's score to have a row for each of {len(output)} images, or one for "
                    f"all, but it has {len(self._mask)}."
                )
            return (self._mask.to(output.device) != 0).expand(len(output), *self._mask.shape[1:])
        region = output.argmax(1) == target.view(-1, *[1] * (output.ndim - 2))
        nowhere = ~region.flatten(1).any(1)
        return region | nowhere.view(-1, *[1] * (output.ndim - 2))

    def _of_own_region(self, output: Tensor, target: Tensor) -> Tensor:
        return self._mean(output, target, self._region(output, target))

    def _mean(self, output: Tensor, target: Tensor, region: Tensor) -> Tensor:
        values = output.softmax(1) if self._probability else output
        index = target.view(-1, *[1] * (output.ndim - 1)).expand(-1, 1, *output.shape[2:])
        chosen = values.gather(1, index)[:, 0].flatten(1)
        weight = region.flatten(1).to(chosen.dtype)
        return (chosen * weight).sum(1) / weight.sum(1).clamp(min=1)


def as_score(score: ScoreName | Score) -> OutputScore:
    """Turn a name, or a callable from (output, target) to ``(B,)``, into a score.

    ``"logit"``, ``"log_probability"``, ``"probability"`` and ``"margin"`` take logits ``(B, classes)``, or the single
    logit of a binary model, ``(B,)`` or ``(B, 1)``: class 1 is explained by that logit, class 0 by its negative.
    ``"region"`` takes dense logits ``(B, classes, *size)``, ``"value"`` any numbers ``(B,)`` or ``(B, values)``.

    Example:
        >>> import torch
        >>> as_score("margin")(torch.tensor([[1.0, 3.0, 0.0]]), torch.tensor([1]))
        tensor([2.])

    """
    if isinstance(score, OutputScore):
        return score
    if callable(score):
        return OutputScore(score)
    check_choice("score", score, ScoreName)
    if score == "region":
        return RegionScore()
    return ValueScore() if score == "value" else LogitScore(_SCORES[score])


def check_rows(output: Any, count: int) -> None:
    """Raise unless ``output`` is a tensor with a row for each of ``count`` images."""
    if not isinstance(output, Tensor) or output.ndim == 0 or len(output) != count:
        raise ValueError(
            f"Expected the model's output for {count} images to be a tensor of shape ({count}, classes), but it is "
            f"{describe(output)}. Pass `output_key` to choose a part of it, or a `forward_fn` that returns such a one."
        )


def check_logits(output: Any, target: Tensor | None) -> None:
    """Raise unless ``output`` is ``(B, classes)``, or one logit per image, and every target is one of the classes."""
    if not isinstance(output, Tensor) or not (output.ndim == 2 or _is_binary(output)):
        dense = isinstance(output, Tensor) and output.ndim > 3
        raise ValueError(
            f"Expected the model's output to be logits of shape (images, classes), but it is {describe(output)}. "
            + ("Pass score='region' for those of a segmentation, " if dense else "Pass ")
            + "`output_key` to choose a part of it, or a callable `score` from (output, target) to one number per "
            "image."
        )
    if target is not None and target.ndim == 2:
        empty = int((target == 0).all(1).sum())
        if target.shape != output.shape or empty:
            raise ValueError(
                f"Expected sets of classes as bool of the output's shape {tuple(output.shape)}, none of them empty, "
                f"but got {tuple(target.shape)}" + (f" and {empty} empty ones." if empty else ".")
            )
    elif target is not None and target.numel():
        low, high = torch.stack(target.aminmax()).tolist()
        if low < 0 or high >= num_classes(output):
            raise ValueError(
                f"Expected targets between 0 and {num_classes(output) - 1}, the classes of the model's output of shape "
                f"{tuple(output.shape)}, but got {low if low < 0 else high}. Pass `target`, a class for all or "
                "'predicted', where the labels are none of these; `output_key` where the logits are in another part of "
                "the output; or score='value' for a regression."
            )


def _is_binary(output: Tensor) -> bool:
    return output.ndim == 1 or (output.ndim == 2 and output.shape[1] == 1)


def _signed(output: Tensor, target: Tensor) -> Tensor:
    return output.reshape(-1) * (2 * target - 1)


def _value(output: Tensor, target: Tensor) -> Tensor:
    return output.reshape(-1) if _is_binary(output) else _logit(output, target)


def _logit(output: Tensor, target: Tensor) -> Tensor:
    if target.ndim == 2:  # a set of classes: their mean
        return (output * target).sum(1) / target.sum(1)
    if _is_binary(output):
        return _signed(output, target)
    return output.gather(1, target[:, None])[:, 0]


def _log_probability(output: Tensor, target: Tensor) -> Tensor:
    if target.ndim == 1 and _is_binary(output):
        return logsigmoid(_signed(output, target))
    return _logit(output.log_softmax(1), target)


def _probability(output: Tensor, target: Tensor) -> Tensor:
    return _log_probability(output, target).exp()


def _margin(output: Tensor, target: Tensor) -> Tensor:
    if target.ndim == 1 and _is_binary(output):
        return _signed(output, target)
    inside = target.bool() if target.ndim == 2 else torch.zeros_like(output).scatter(1, target[:, None], 1).bool()
    return _logit(output, target) - output.masked_fill(inside, float("-inf")).amax(1)


_SCORES: dict[str, Score] = {
    "logit": _logit,
    "log_probability": _log_probability,
    "probability": _probability,
    "margin": _margin,
}


def check_score(score: Any, count: int) -> Tensor:
    """``(count,)`` float32: the scores, if they are one number per image."""
    if not isinstance(score, Tensor) or score.shape != (count,):
        seen = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
        raise ValueError(
            f"Expected `score` to return one number per image, {(count,)}, but got {seen}. Write one that reduces the "
            "rest, such as `lambda output, target: output.flatten(1).mean(1)`."
        )
    return score.float()


def in_float(output: Any) -> Any:
    """Scores are computed in float32, whatever the model's precision."""
    return output.float() if isinstance(output, Tensor) else output
