"""What the user asked for, checked before anything starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torchmetrics import Metric, MetricCollection

from egcam_lightning.data.batch import BatchKeys
from egcam_lightning.data.probe import check_probe
from egcam_lightning.data.targets import Target, check_target
from egcam_lightning.explain.config import ExplainerConfig, check_counts, pick
from egcam_lightning.metrics.registry import build_metrics


@dataclass(frozen=True, eq=False, kw_only=True)
class CallbackConfig:
    """The arguments of the callback, under their names; those of the explainer and of batches are values of their own.

    Raises:
        TypeError: for a single value where several are expected.
        ValueError: for arguments out of range.

    """

    explainer: ExplainerConfig
    keys: BatchKeys
    num_images: int
    audit_images: int
    audit_every: int | None
    num_baselines: int
    baseline_samples: int | None
    every_n_epochs: int | None
    every_n_train_steps: int | None
    log_at_start: bool
    target: Target
    metrics: str | Mapping[str, str | Metric] | tuple[str | Metric, ...]
    probe: Any
    class_names: tuple[str, ...] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    max_overhead: float | None
    seed: int
    save_dir: str | None
    save_baselines: bool
    log_prefix: str
    alerts: Mapping[str, float]
    log_page_every: int | None
    colormap: str
    strict: bool

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> CallbackConfig:
        """Group the callback's arguments, given by their names."""
        additional = arguments["additional_keys"]
        return pick(
            cls,
            {
                **arguments,
                **{
                    name: None if arguments[name] is None else _several(name, arguments[name])
                    for name in ("class_names", "mean", "std")
                },
                "explainer": ExplainerConfig.from_arguments(arguments),
                "keys": pick(
                    BatchKeys,
                    {
                        **arguments,
                        "additional_keys": (additional,) if isinstance(additional, (str, int)) else tuple(additional),
                    },
                ),
                "metrics": _readable_again(arguments["metrics"]),
                "alerts": arguments["alerts"] or {},
            },
        )

    def __post_init__(self) -> None:
        check_counts(num_images=self.num_images, num_baselines=self.num_baselines)
        check_counts(
            optional=True,
            every_n_epochs=self.every_n_epochs,
            every_n_train_steps=self.every_n_train_steps,
            baseline_samples=self.baseline_samples,
            log_page_every=self.log_page_every,
            audit_every=self.audit_every,
        )
        if not isinstance(self.audit_images, int) or self.audit_images < 0:
            raise ValueError(
                f"Expected `audit_images` to be the number of images to audit, or 0 for no audit, but got "
                f"{self.audit_images!r}."
            )
        if (self.mean is None) != (self.std is None):
            raise ValueError(
                "Expected `mean` and `std` together, but got only one of them. Write both, such as mean=(0.5,), "
                "std=(0.5,), or none."
            )
        check_probe(self.probe)
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
            if key.startswith(f"{self.log_prefix}/"):
                raise ValueError(
                    f"Expected `alerts` to have keys without the prefix, but got {key!r}. Write "
                    f"{key.removeprefix(f'{self.log_prefix}/')!r}."
                )
        build_metrics(self.metrics, masks=self.keys.masks_key is not None)  # a wrong name is told of now

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """The mean and standard deviation that images were normalised with, where the user said so."""
        return None if self.mean is None or self.std is None else (self.mean, self.std)


def _readable_again(metrics: Any) -> Any:
    """The user's choice of metrics, in a form that can be read more than once."""
    if isinstance(metrics, (Mapping, MetricCollection)):
        return dict(metrics.items())
    return metrics if isinstance(metrics, str) else _several("metrics", metrics)


_EXAMPLES = {
    "class_names": "('cat', 'dog')",
    "mean": "(0.5,)",
    "std": "(0.5,)",
    "metrics": "('infidelity',), or ()",
}


def _several(name: str, values: Any) -> tuple[Any, ...]:
    """The values of an argument that takes several."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"Expected `{name}` to be several values, but got {values!r}. Write {name}={_EXAMPLES[name]}.")
    return tuple(values)
