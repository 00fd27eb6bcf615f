"""The values that are kept: the images for display, and what each snapshot found of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


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
        if self.class_names is not None and 0 <= index < len(self.class_names):
            return self.class_names[index]
        return str(index)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What one look at the probe gave: one entry of the history.

    ``N`` probe images, a layer grid of ``h`` x ``w`` (``d`` x ``h`` x ``w`` for volumes).

    Attributes:
        epoch: the Trainer's epoch.
        step: the step that Lightning gives to loggers.
        when: ``"start"`` (before training), ``"epoch"`` or ``"step"`` (between epochs).
        layer: the resolved name of the target layer.
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
    target: Tensor
    prediction: Tensor
    score: Tensor
    baseline_score: Tensor
    completeness_gap: Tensor
    off_grid: Tensor
    drift_previous: Tensor | None = None
    drift_reference: Tensor | None = None
    noise_floor: Tensor | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def key(self) -> tuple[int, int, str]:
        """``(epoch, step, when)``: what a snapshot is known by. Before and behind the first step Lightning says 0."""
        return self.epoch, self.step, self.when

    @property
    def name(self) -> str:
        """The key as a file's name, without an ending."""
        return f"epoch={self.epoch:04d}-step={self.step:06d}" + {"start": "-start", "step": "-step"}.get(self.when, "")
