"""What the user asked for, checked before anything starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torchmetrics import Metric

from egcam_lightning.data.batch import BatchKeys
from egcam_lightning.data.targets import Target, check_target
from egcam_lightning.explain import ExpectedGradCAM
from egcam_lightning.metrics.registry import build_metrics


@dataclass(frozen=True, eq=False)
class CallbackConfig:
    """What the user asked for.

    Raises:
        ValueError: for arguments out of range.

    """

    explainer: Mapping[str, Any]
    target: Target
    metrics: str | tuple[str | Metric, ...] | Mapping[str, str | Metric]
    num_images: int
    num_baselines: int
    baseline_samples: int | None
    probe: Any
    class_names: tuple[str, ...] | None
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None
    keys: BatchKeys
    max_overhead: float | None
    seed: int
    save_dir: str | None
    prefix: str
    alerts: Mapping[str, float]
    log_page_every: int | None
    colormap: str
    strict: bool

    def __post_init__(self) -> None:
        check_counts(num_images=self.num_images, num_baselines=self.num_baselines)
        check_counts(num_samples=self.explainer["num_samples"])
        check_counts(optional=True, chunk_size=self.explainer["chunk_size"], baseline_samples=self.baseline_samples)
        check_counts(optional=True, log_page_every=self.log_page_every)
        if self.max_overhead is not None and not 0 < self.max_overhead <= 1:
            raise ValueError(
                "Expected `max_overhead` to be a share between 0 and 1, or None for any, but got "
                f"{self.max_overhead!r}."
            )
        check_target(self.target)
        if self.colormap != "inferno":  # the default is known, and matplotlib need not be loaded for it
            from egcam_lightning.pictures.draw import color_table

            color_table(self.colormap)
        for key, limit in self.alerts.items():
            if not isinstance(limit, (int, float)):
                raise ValueError(
                    f"Expected `alerts` to map keys to numbers, as in {{'consensus': 0.95}}, but got {limit!r} for "
                    f"{key!r}."
                )
            if key.startswith(f"{self.prefix}/"):
                raise ValueError(
                    f"Expected `alerts` to have keys without the prefix, but got {key!r}. Write "
                    f"{key.removeprefix(f'{self.prefix}/')!r}."
                )
        ExpectedGradCAM(nn.Identity(), **self.explainer)  # a wrong argument of the explainer is told of now
        build_metrics(self.metrics, masks=self.keys.masks is not None)  # and so is a wrong name


def as_tuple(name: str, values: Any, example: str) -> tuple[Any, ...]:
    """The values of an argument that takes several.

    Args:
        name: the argument's name.
        values: what was given.
        example: what to write instead.

    Raises:
        TypeError: for a single value.

    """
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"Expected `{name}` to be several values, but got {values!r}. Write {name}={example}.")
    return tuple(values)


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
