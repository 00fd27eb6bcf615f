"""What can be asked of the explainer, checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from torch import nn

from egcam_lightning.explain.perturbation import Perturbation, Weighting, check_choice
from egcam_lightning.explain.scores import Score, ScoreName, as_score

Config = TypeVar("Config")


@dataclass(frozen=True, eq=False, kw_only=True)
class ExplainerConfig:
    """The arguments of :class:`~egcam_lightning.ExpectedGradCAM`, under their names; it says what they mean.

    Raises:
        TypeError: for a layer or a perturbation that is none.
        ValueError: for numbers out of range, and names that are none of the choices.

    Example:
        >>> ExplainerConfig(num_samples=0)
        Traceback (most recent call last):
        ...
        ValueError: Expected `num_samples` to be a positive integer, but got 0.

    """

    target_layer: str | nn.Module | Sequence[str | nn.Module] = "auto"
    perturbation: Perturbation | None = None
    weighting: Weighting | None = None
    num_samples: int = 32
    seed: int = 0
    score: ScoreName | Score = "logit"
    output_key: str | int | None = None
    forward_fn: Callable[..., Any] | None = None
    reshape_transform: Callable[..., Any] | None = None
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        check_counts(num_samples=self.num_samples)
        check_counts(optional=True, chunk_size=self.chunk_size)
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            raise ValueError(f"Expected `seed` to be an integer from 0 to 2**32 - 1, but got {self.seed!r}.")
        if self.weighting is not None:
            check_choice("weighting", self.weighting, Weighting)
        if not self.layers:
            raise ValueError(
                "Expected `target_layer` to name at least one layer, but got an empty list. Write 'auto' for a search."
            )
        for layer in self.layers:
            if not isinstance(layer, (str, nn.Module)):
                raise TypeError(
                    "Expected `target_layer` to be 'auto', a module's name as in `model.named_modules()`, a module, or "
                    f"a list of these, but got {layer!r}."
                )
        if self.perturbation is not None and not isinstance(self.perturbation, Perturbation):
            raise TypeError(
                "Expected `perturbation` to be a Perturbation, such as Perturbation.grad_cam(), but got "
                f"{self.perturbation!r}."
            )
        as_score(self.score)

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> ExplainerConfig:
        """Those of some arguments, given by their names, that are the explainer's."""
        return pick(cls, arguments)

    @property
    def layers(self) -> tuple[str | nn.Module, ...]:
        """The layers that are asked for: one or several, also as they are announced: ``"layer2+layer3"``."""
        if isinstance(self.target_layer, str):
            return tuple(name.strip() for name in self.target_layer.split("+"))
        several = isinstance(self.target_layer, (list, tuple))
        return tuple(self.target_layer) if several else (self.target_layer,)  # type: ignore[arg-type,return-value]

    def arguments(self, **changes: Any) -> dict[str, Any]:
        """The arguments by name, with some of them changed."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | changes


def pick(kind: Callable[..., Config], arguments: Mapping[str, Any]) -> Config:
    """A dataclass of those arguments, given by their names, that are its fields."""
    return kind(**{field.name: arguments[field.name] for field in fields(kind)})  # type: ignore[arg-type]


def check_counts(*, optional: bool = False, **counts: int | None) -> None:
    """Insist on positive integers.

    Args:
        optional: whether ``None`` will do as well.
        **counts: numbers by the name of the argument.

    Raises:
        ValueError: for anything else.

    """
    for name, count in counts.items():
        if not (optional and count is None) and (not isinstance(count, int) or count < 1):
            raise ValueError(f"Expected `{name}` to be a positive integer, but got {count!r}.")
