"""The values that pass between rooms: what one explanation is, what one look at the probe gave, and all of them.

Everything here is a frozen dataclass of plain tensors, numbers and strings. Nothing here computes an explanation,
knows a logger or touches a Trainer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def to_heatmap(attribution: Tensor, size: tuple[int, ...]) -> Tensor:
    """Turn signed maps into what people look at: the positive part, at the input's size, with maximum 1.

    Args:
        attribution: signed maps of shape ``(B, h, w)`` (or ``(B, d, h, w)`` for volumes).
        size: the input's spatial size, ``(H, W)`` (or ``(D, H, W)``).

    Returns:
        Maps of shape ``(B, *size)`` in [0, 1]; all zero where nothing is positive. Cells not finite count as 0.

    Example:
        >>> import torch
        >>> to_heatmap(torch.tensor([[[-1.0, 2.0]]]), (1, 2))
        tensor([[[0., 1.]]])

    """
    positive = attribution.float().nan_to_num(0.0, 0.0, 0.0).clamp(min=0)
    mode = "trilinear" if len(size) == 3 else "bilinear"
    heatmap = interpolate(positive[:, None], size=size, mode=mode, align_corners=False)[:, 0]
    peak = heatmap.flatten(1).amax(1).view(-1, *[1] * len(size))
    return torch.where(peak > 0, heatmap / peak.clamp(min=torch.finfo(heatmap.dtype).tiny), 0.0)


@dataclass(frozen=True, eq=False)
class Explanation:
    """What one call of the explainer returns. All tensors are detached, float32 and on the inputs' device.

    ``B`` images, ``S`` draws, a layer grid of ``h`` x ``w`` and an input of ``H`` x ``W``; of volumes every grid and
    size has its depth in front, ``(B, d, h, w)`` and ``(B, D, H, W)``.

    Attributes:
        attribution: ``(B, h, w)``, the signed map at the layer's resolution, in units of the score, not normalised.
        heatmap: ``(B, H, W)``, its positive part at the input's size, divided by its maximum.
        target: ``(B,)`` int64, the explained class.
        score: ``(B,)``, the score ``s(x)`` of the image.
        baseline_score: ``(B,)``, the mean of ``s(x')`` over the draws used (NaN where there is no baseline score).
        completeness_gap: ``(B,)``, ``|sum(map) + off_grid - (score - baseline_score)| / |score - baseline_score|``.
            Unbounded where the two scores hardly differ: judge :class:`~egcam_lightning.metrics.CompletenessGap`,
            which pools over images. NaN where there is no baseline score.
        draws: ``(S, B, h, w)``, the signed map of every draw; their mean is ``attribution``.
        baseline_index: ``(S, B)`` int64, the row of the baselines that each draw used (-1 without baselines).
        standard_error: ``(B, h, w)``, the Monte Carlo standard error of ``attribution`` (0 for a single draw).
        off_grid: ``(B,)``, attribution of tokens that have no place on the image; 0 for convolutional networks.
        layer: the resolved name of the target layer.
        prediction: ``(B,)`` int64, the predicted class (-1 where the model predicts no class).

    """

    attribution: Tensor
    heatmap: Tensor
    target: Tensor
    score: Tensor
    baseline_score: Tensor
    completeness_gap: Tensor
    draws: Tensor
    baseline_index: Tensor
    standard_error: Tensor
    off_grid: Tensor
    layer: str
    prediction: Tensor

    @classmethod
    def from_draws(
        cls,
        draws: Tensor,
        off_grid: Tensor,
        *,
        target: Tensor,
        prediction: Tensor,
        score: Tensor,
        baseline_score: Tensor,
        baseline_index: Tensor,
        size: tuple[int, ...],
        layer: str,
    ) -> Explanation:
        """Make an explanation of its draws, ``(S, B, h, w)``, and the rest from them; ``size`` is the images'."""
        attribution = draws.mean(0)
        difference = score - baseline_score
        spread = draws.std(0) if len(draws) > 1 else torch.zeros_like(attribution)
        return cls(
            attribution=attribution,
            heatmap=to_heatmap(attribution, size),
            target=target,
            score=score,
            baseline_score=baseline_score,
            completeness_gap=(attribution.flatten(1).sum(1) + off_grid - difference).abs() / difference.abs(),
            draws=draws,
            baseline_index=baseline_index,
            standard_error=spread / len(draws) ** 0.5,
            off_grid=off_grid,
            layer=layer,
            prediction=prediction,
        )

    @property
    def stability(self) -> Tensor:
        """``(B, h, w)``: ``|mean| / standard error`` of each cell; infinite where the draws all agree."""
        return self.attribution.abs() / self.standard_error


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


@dataclass(frozen=True, eq=False)
class History:
    """Every snapshot of a run, oldest first, and the images they look at.

    Attributes:
        probe: the images, for display.
        snapshots: the snapshots so far.
        prefix: the prefix under which values were logged.
        run: what the run is known by; a resumed one keeps it.

    """

    probe: ProbeImages
    snapshots: Sequence[Snapshot] = ()
    prefix: str = "egcam"
    run: str = ""

    def __len__(self) -> int:
        return len(self.snapshots)

    def __getitem__(self, index: int) -> Snapshot:
        return self.snapshots[index]

    @classmethod
    def load(cls, run_dir: str | PathLike[str]) -> History:
        """Read the history that a run left in ``run_dir`` (the folder that holds ``history.jsonl``).

        Raises:
            ValueError: where the folder holds no history, or a damaged or foreign one.

        """
        from egcam_lightning.store import load_history

        return load_history(run_dir)

    def rows(self) -> list[dict[str, Any]]:
        """One flat dictionary a snapshot, ready for ``pandas.DataFrame(history.rows())``."""
        return [{"epoch": s.epoch, "step": s.step, "when": s.when, **s.metrics} for s in self.snapshots]
