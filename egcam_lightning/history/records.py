"""The values that are kept: the images for display, and what each snapshot found of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache

from torch import Tensor

from egcam_lightning.findings.records import class_name


@dataclass(frozen=True)
class Occasion:
    """The occasion of a snapshot."""

    epoch: int
    step: int
    kind: str


@dataclass(frozen=True, eq=False)
class ProbeImages:
    """What people see of the probe: the fixed images, for display, and what is known of them.

    Attributes:
        images: ``(N, H, W, 3)`` uint8, ready to be shown; volumes ``(N, D, H, W, 3)``.
        labels: ``(N,)`` int64 or ``None``.
        class_names: one name a class, or ``None``.
        fingerprint: hash of the model inputs; equal fingerprints mean the same images.
        restored: whether the colours are the data set's own (``mean`` and ``std`` were known); otherwise every image
            was stretched to its own range, and captions say so.
        masks: ``(N, H, W)`` bool (volumes ``(N, D, H, W)``), where the object is, or ``None``.

    """

    images: Tensor
    labels: Tensor | None = None
    class_names: tuple[str, ...] | None = None
    fingerprint: str = ""
    restored: bool = False
    masks: Tensor | None = None

    @property
    def depth(self) -> int | None:
        """The number of slices of each volume; ``None`` for images."""
        return self.images.shape[1] if self.images.ndim == 5 else None

    def name(self, index: int) -> str:
        """Name of class ``index``: its name where one is known, else its number."""
        return class_name(self.class_names, index)


@dataclass(frozen=True)
class PerImage:
    """How one value per image is stored, and where people see it.

    It stands in the metadata of its field in :class:`Snapshot`, under ``"per_image"``. All that stores or shows such
    values reads it there: checkpoints, the run folder, the page, the captions and the table of Weights & Biases.

    Attributes:
        integer: whether it is stored as int64; otherwise as float32. In memory and in checkpoints an integer is exact
            up to 2**24.
        page: its key in the data of the timeline page; ``None`` where the page has no use for it.
        title: what the page calls it where an image is enlarged; ``None`` where it is not listed there.
        column: whether it is a column, under the name of its field, of the table in Weights & Biases.
        caption: from a value to what the captions of the pictures say of it, an empty string for nothing; ``None``
            where they never speak of it.
        optional: whether a snapshot may be without it; not declared, but read off the default of the field.

    Example:
        >>> entropy = PerImage(page="entropy", title="entropy")
        >>> @dataclass(frozen=True, eq=False)
        ... class WithEntropy(Snapshot):
        ...     entropy: Tensor | None = field(default=None, metadata={"per_image": entropy})
        >>> WithEntropy.values_per_image()["entropy"].optional
        True

    """

    integer: bool = False
    page: str | None = None
    title: str | None = None
    column: bool = True
    caption: Callable[[float], str] | None = None
    optional: bool = False


def _say_gap(gap: float) -> str:
    if math.isnan(gap):
        return ""
    return f"gap {100 * gap:.1f} %" if gap < 10 else "gap above 1000 %"


def _say_drift(drift: float) -> str:
    return "" if math.isnan(drift) else f"drift {drift:.2f}"


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What was found of the probe at one moment of the training: one entry of the history.

    ``N`` probe images, a layer grid of ``h`` x ``w`` (``d`` x ``h`` x ``w`` for volumes).

    Attributes:
        epoch: the Trainer's epoch.
        step: the step that Lightning gives to loggers.
        when: ``"start"`` (before training), ``"epoch"`` or ``"step"`` (between epochs).
        layer: the resolved name of the target layer, and behind it the method's where it is another than the default,
            ``"layer3 (Expected LayerCAM)"``.
        baselines: the generation of the baselines used; drift is only taken between equal generations.
        attribution: ``(N, h, w)`` float32, signed; of volumes the map over all three axes, ``(N, d, h, w)``. In the
            history of a run, maps of more than 64 cells are read from the run folder; where their file is not to be
            found, this has a smaller grid, with the averages.
        target: ``(N,)`` int64, the explained class.
        prediction: ``(N,)`` int64, the predicted class (-1 where the model predicts no class).
        score: ``(N,)``, the explained score.
        baseline_score: ``(N,)``, its mean over the baselines.
        completeness_gap: ``(N,)``, per image.
        off_grid: ``(N,)``, attribution that has no place on the image.
        drift_previous: ``(N,)``, 1 - rank correlation with the previous snapshot, or ``None`` where undefined.
        drift_reference: ``(N,)``, the same against the reference snapshot, or ``None``.
        noise_floor: ``(N,)``, the distance that Monte Carlo alone can produce, or ``None``.
        metrics: the values logged, by key without the prefix (``"drift/previous"``), all finite.

    """

    epoch: int
    step: int
    when: str
    layer: str
    baselines: int
    attribution: Tensor
    # The page and the table show classes by their names.
    target: Tensor = field(metadata={"per_image": PerImage(integer=True, page="target", column=False)})
    prediction: Tensor = field(metadata={"per_image": PerImage(integer=True, page="prediction", column=False)})
    score: Tensor = field(
        metadata={"per_image": PerImage(page="score", title="score", caption="score {:.3g}".format)},
    )
    baseline_score: Tensor = field(metadata={"per_image": PerImage(page="baseline", title="of the baselines")})
    completeness_gap: Tensor = field(
        metadata={"per_image": PerImage(page="gap", title="completeness gap", caption=_say_gap)},
    )
    off_grid: Tensor = field(metadata={"per_image": PerImage(page="offGrid", title="off the grid", column=False)})
    drift_previous: Tensor | None = field(
        default=None,
        metadata={"per_image": PerImage(page="drift", title="drift, previous", caption=_say_drift)},
    )
    drift_reference: Tensor | None = field(
        default=None,
        metadata={"per_image": PerImage(page="reference", title="drift, first epoch")},
    )
    noise_floor: Tensor | None = field(
        default=None,
        metadata={"per_image": PerImage(page="floor", title="noise floor")},
    )
    metrics: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    @cache
    def values_per_image(cls) -> Mapping[str, PerImage]:
        """How each value per image is stored and shown, by the name of its field, in the order of the fields."""
        return {
            one.name: replace(one.metadata["per_image"], optional=one.default is None)
            for one in fields(cls)
            if "per_image" in one.metadata
        }

    @property
    def key(self) -> tuple[int, int, str]:
        """``(epoch, step, when)``: what a snapshot is known by. Before and behind the first step Lightning says 0."""
        return self.epoch, self.step, self.when

    @property
    def name(self) -> str:
        """The key as a file's name, without an ending."""
        return f"epoch={self.epoch:04d}-step={self.step:06d}" + {"start": "-start", "step": "-step"}.get(self.when, "")
