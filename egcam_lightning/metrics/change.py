"""How far explanations have moved between two snapshots, and what of it is more than chance.

The one place that says which snapshots are compared, with what, and what significant drift is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from egcam_lightning.metrics.functional.drift import (
    centre_shift,
    rank_drift,
    significant,
    ssim_drift,
    top_iou_drift,
)


class Explained(Protocol):
    """What is compared: the fields of a :class:`~egcam_lightning.Snapshot` that matter here, ``N`` images."""

    @property
    def when(self) -> str:
        """The occasion."""

    @property
    def layer(self) -> str:
        """The target layer."""

    @property
    def baselines(self) -> int:
        """The generation of the baselines."""

    @property
    def attribution(self) -> Tensor:
        """``(N, h, w)``, signed."""

    @property
    def target(self) -> Tensor:
        """``(N,)`` int64."""

    @property
    def prediction(self) -> Tensor:
        """``(N,)`` int64, -1 where the model predicts no class."""

    @property
    def noise_floor(self) -> Tensor | None:
        """``(N,)``, what Monte Carlo alone can produce."""

    @property
    def drift_previous(self) -> Tensor | None:
        """``(N,)``, the rank drift since the snapshot before."""


Earlier = TypeVar("Earlier", bound=Explained)


@dataclass(frozen=True, eq=False)
class Change:
    """What a snapshot is beside earlier ones.

    Attributes:
        drift_previous: ``(N,)``, the rank drift since the snapshot before; ``None`` where the two cannot be compared.
        drift_reference: ``(N,)``, the same since the reference.
        values: means over the images by the key that they are logged under; ``None`` where there is none.

    """

    drift_previous: Tensor | None = None
    drift_reference: Tensor | None = None
    values: Mapping[str, float | None] = field(default_factory=dict)


def reference_of(snapshots: Sequence[Earlier], generation: int) -> Earlier | None:
    """The snapshot that drift is measured from: the first after an epoch with these baselines."""
    return next((s for s in snapshots if s.when == "epoch" and s.baselines == generation), None)


def comparable(now: Explained, before: Explained | None) -> bool:
    """Whether drift between two snapshots is the model's: not across a change of baselines, layer or targets."""
    return (
        before is not None
        and before.baselines == now.baselines
        and before.layer == now.layer
        and before.attribution.shape == now.attribution.shape
        and torch.equal(before.target, now.target)
    )


def floor_between(now: Explained, before: Explained | None) -> Tensor | None:
    """``(N,)``: the drift that chance alone can produce between two snapshots, the larger of their noise floors.

    That of the later one where the earlier has none, or is relative to other baselines; ``None`` without any.
    """
    earlier = before.noise_floor if before is not None and before.baselines == now.baselines else None
    if now.noise_floor is None or earlier is None:
        return now.noise_floor
    return torch.maximum(now.noise_floor, earlier)


def is_significant(now: Explained, before: Explained | None) -> Tensor | None:
    """``(N,)`` bool: which images have moved by more than chance; ``None`` where drift or its floor is not known.

    Drift is significant where it exceeds :func:`floor_between`; one that is NaN never is.
    """
    floor = floor_between(now, before)
    return None if floor is None or now.drift_previous is None else significant(now.drift_previous, floor)


def change_of(now: Explained, previous: Explained | None, reference: Explained | None) -> Change:
    """Compare a snapshot with the one before and with the reference.

    Args:
        now: the snapshot, without its drift.
        previous: the snapshot before.
        reference: the snapshot that drift is measured from, see :func:`reference_of`.

    """
    values: dict[str, float | None] = {"drift/noise_floor": _mean(now.noise_floor)}
    since_reference = since_previous = None
    if reference is not None and comparable(now, reference):
        since_reference = rank_drift(now.attribution, reference.attribution)
        values["drift/reference"] = _mean(since_reference)
    if previous is not None and comparable(now, previous):
        maps, before = now.attribution, previous.attribution
        since_previous = rank_drift(maps, before)
        values["drift/previous"] = _mean(since_previous)
        values["drift/ssim"] = _mean(ssim_drift(maps, before))
        values["drift/top_iou"] = _mean(top_iou_drift(maps, before))
        values["drift/centre_shift"] = _mean(centre_shift(maps, before))
        floor = floor_between(now, previous)
        if floor is not None and previous.noise_floor is not None:
            moved = significant(since_previous, floor)
            values["drift/significant"] = _mean(moved[torch.isfinite(since_previous)].float())
    if previous is not None and not bool((now.prediction < 0).any()):
        values["prediction_changed"] = float((now.prediction != previous.prediction).float().mean())
    return Change(since_previous, since_reference, values)


def _mean(values: Tensor | None) -> float | None:
    """The mean of the finite values, or ``None`` where there is none."""
    if values is None:
        return None
    finite = values[torch.isfinite(values)]
    return float(finite.mean()) if len(finite) else None
