"""Taking a snapshot: explain the probe, measure the explanation, and compare it with earlier ones."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from egcam_lightning import metrics as m
from egcam_lightning.data.probe import Probe
from egcam_lightning.explain import ExpectedGradCAM
from egcam_lightning.explain.explanation import Explanation
from egcam_lightning.explain.path_gradients import rows_of
from egcam_lightning.history.codec import round_maps
from egcam_lightning.history.records import Occasion, Snapshot
from egcam_lightning.metrics import functional as F
from egcam_lightning.training.process_group import ProcessGroup

"""Keys of what is measured against an earlier snapshot."""

"""Keys of what a look finds whatever the metrics."""

"""Keys of what a snapshot cost: logged beside it and no part of it, since a run that is resumed takes other times."""


@dataclass(eq=False)
class Snapshotter:
    """What one look at the probe needs, and how to take it.

    Attributes:
        explainer: the explainer.
        metrics: metrics by key; those that take images run on each process's share, the others on the whole.
        process_group: the processes that the probe is split over.
        device: where the model is.
        seed: the user's seed.
        failures: what the metrics that failed at the last look raised, by key.
        seconds: what the last look took, by part.

    """

    explainer: ExpectedGradCAM
    metrics: Mapping[str, Metric]
    process_group: ProcessGroup
    device: torch.device
    seed: int = 0
    failures: dict[str, Exception] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def take(
        self,
        probe: Probe,
        baselines: Tensor,
        generation: int,
        when: Occasion,
        previous: Snapshot | None = None,
        reference: Snapshot | None = None,
    ) -> Snapshot:
        """Take a snapshot.

        Args:
            probe: the images, with their targets settled or not.
            baselines: ``(R, C, H, W)``, as the model takes them.
            generation: which baselines these are.
            when: the occasion.
            previous: the snapshot before, for drift.
            reference: the snapshot that drift is measured from.

        Returns:
            The snapshot of the whole probe, the same in every process.

        """
        sets = probe.target_sets
        rows, own = self.process_group.shard(len(probe))

        def explain() -> tuple[tuple[Tensor, ...], Explanation, Tensor | None]:
            inputs = probe.inputs(rows, self.device)
            explanation = self.explainer(
                inputs[0],
                baselines,
                None if probe.targets is None else probe.targets[rows].to(self.device),
                additional_forward_args=inputs[1:],
                image_index=rows.tolist(),
            )
            floor = F.noise_floor(explanation.draws, explanation.baseline_index, seed=self.seed)
            return inputs, explanation, floor

        begin = time.perf_counter()
        inputs, explanation, floor = self.process_group.run_or_raise_everywhere(explain)

        def whole(share: Tensor) -> Tensor:
            return self.process_group.gather(share.to(self.device), len(probe))

        snapshot = Snapshot(
            epoch=when.epoch,
            step=when.step,
            when=when.kind,
            layer=explanation.layer,
            baselines=generation,
            # Rounded as they will be stored, so that a resumed run measures drift from the same bits.
            attribution=round_maps(whole(explanation.attribution)),
            # A set is shown by the first of its classes, which stays while the model changes.
            target=whole(explanation.target) if sets is None else sets.int().argmax(1),
            prediction=whole(explanation.prediction),
            score=whole(explanation.score),
            baseline_score=whole(explanation.baseline_score),
            completeness_gap=whole(explanation.completeness_gap),
            off_grid=whole(explanation.off_grid),
            noise_floor=None if floor is None else whole(floor),
        )
        explained = time.perf_counter()  # on a device too: the maps have come to the CPU by now
        drift = _drift(snapshot, previous, reference)
        values = {
            **_describe(snapshot),
            **self._measure(probe, inputs, baselines, explanation, snapshot, rows, own),
            **drift.pop("values"),
            **_change(snapshot, previous),
        }
        self.seconds |= {"explanation": explained - begin, "metrics": time.perf_counter() - explained}
        finite = {key: float(value) for key, value in values.items() if value is not None and math.isfinite(value)}
        # Logging waits for all processes key by key: what the first one measured is what all of them log.
        return replace(snapshot, metrics=self.process_group.broadcast(finite), **drift)

    def _measure(
        self,
        probe: Probe,
        inputs: tuple[Tensor, ...],
        baselines: Tensor,
        explanation: Explanation,
        snapshot: Snapshot,
        rows: Tensor,
        own: int,
    ) -> dict[str, float | None]:
        """Value of each metric that has one; a metric that fails is left out, and told of, in every process alike."""
        images, others, maps = inputs[0], inputs[1:], snapshot.attribution
        share = {
            "images": images[:own].float(),
            "attribution": explanation.attribution[:own],
            "target": explanation.target[:own],
            "scores": explanation.score[:own],
        }
        # All metrics that blur the images share one blurred copy.
        if own and any("replacement" in metric._filter_kwargs(replacement=0) for metric in self.metrics.values()):
            share["replacement"] = F.blurred(share["images"])
        everything: dict[str, Any] = {
            "attribution": maps,
            "target": snapshot.target,
            "score": snapshot.score,
            "baseline_score": snapshot.baseline_score,
            "off_grid": snapshot.off_grid,
        }
        if probe.masks is not None:
            everything["mask"] = probe.masks
        values: dict[str, float | None] = {}
        if probe.masks is not None and any(isinstance(one, m.ExplanationConsensus) for one in self.metrics.values()):
            null = F.consensus_null(probe.masks, snapshot.target, tuple(maps.shape[1:]))
            values["consensus_null"] = None if null is None else float(null)
        self.failures = {}
        sets = probe.target_sets
        targets = explanation.target if sets is None else sets[rows].to(self.device)
        score_of = self.process_group.run_or_raise_everywhere(lambda: self.explainer.bind(images, targets, *others))

        def score(probability: bool) -> Callable[[Tensor, Tensor], Tensor]:
            return lambda points, rows: score_of(_in_type(points, probe.dtype), rows, probability)

        index = rows.to(self.device)

        def explain(points: Tensor, rows: Tensor) -> Tensor:
            return self.explainer(
                _in_type(points, probe.dtype),
                baselines,
                targets[rows],
                additional_forward_args=rows_of(others, rows),
                image_index=index[rows].tolist(),  # the same draws as the image's own, in whichever process
            ).attribution

        for key, metric in self.metrics.items():
            takes_images = "images" in metric._filter_kwargs(**share)
            arguments = metric._filter_kwargs(**(share if takes_images else everything))
            # A metric repeats and reorders images and targets alike. One that asks the model is given the images' rows
            # for their targets, by which these, the model's other inputs and a segmentation's regions are found.
            functions = {"score_fn": score(isinstance(metric, (m.InsertionAUC, m.DeletionAUC))), "explain_fn": explain}
            bound = [name for name in functions if getattr(metric, name, 0) is None]  # unless the user gave one
            if bound:
                arguments["target"] = torch.arange(own, device=self.device)
            if "explain_fn" in bound and isinstance(metric, m.MaxSensitivity):
                arguments["images"] = images[:own]  # not in floats: it has to move them by what their type can hold
            for name in bound:
                setattr(metric, name, functions[name])
            try:
                metric._to_sync = takes_images  # setting `sync_on_compute` has no effect once it is made
                update = partial(self._update, metric, arguments if own or not takes_images else None)
                if takes_images:
                    self.process_group.run_or_raise_everywhere(update)
                else:
                    update()
                values[key] = float(metric.compute())
                metric.reset()
            except Exception as problem:
                self.failures[key] = problem
            finally:
                metric._to_sync = metric.sync_on_compute
                for name in bound:  # the metric outlives the fit; the model need not
                    setattr(metric, name, None)
        return values

    def _update(self, metric: Metric, arguments: Mapping[str, Any] | None) -> None:
        """Show a metric what it measures; ``None`` where this process has no image of its own."""
        metric.reset()
        metric.to("cpu" if arguments is not None and "images" not in arguments else self.device)
        if arguments is not None:
            metric.update(**arguments)


def _in_type(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Images as the model takes them: whole numbers where it takes those."""
    if dtype.is_floating_point or dtype == images.dtype:
        return images.to(dtype)
    limits = torch.iinfo(dtype)
    return images.round().clamp(limits.min, limits.max).to(dtype)


def reference_of(snapshots: Sequence[Snapshot], generation: int) -> Snapshot | None:
    """The snapshot that drift is measured from: the first after an epoch with these baselines."""
    return next((s for s in snapshots if s.when == "epoch" and s.baselines == generation), None)


def _describe(snapshot: Snapshot) -> dict[str, float | None]:
    """What needs nothing but the maps and scores."""
    maps, off_grid = snapshot.attribution, snapshot.off_grid
    placed = maps.flatten(1).sum(1)
    gap = m.CompletenessGap(sync_on_compute=False)
    gap.update(maps, snapshot.score, snapshot.baseline_score, off_grid)
    finite = torch.isfinite(maps).flatten(1).all(1) & torch.isfinite(snapshot.score)
    total = (off_grid.abs() + placed.abs())[finite].sum()
    lost = 1 - float(finite.float().mean())
    return {
        "completeness_gap": float(gap.compute()),
        "degenerate": float((maps.nan_to_num().flatten(1).amax(1) <= 0).float().mean()),
        "off_grid": float(off_grid[finite].abs().sum() / total) if bool(off_grid.any()) else None,
        "not_finite": lost if lost else None,
    }


def _change(snapshot: Snapshot, previous: Snapshot | None) -> dict[str, float | None]:
    if previous is None or bool((snapshot.prediction < 0).any()):
        return {}
    return {"prediction_changed": float((snapshot.prediction != previous.prediction).float().mean())}


def _drift(snapshot: Snapshot, previous: Snapshot | None, reference: Snapshot | None) -> dict[str, Any]:
    """Drift per image and pooled; nothing across a change of baselines, layer or targets."""
    values: dict[str, float | None] = {"drift/noise_floor": _mean(snapshot.noise_floor)}
    result: dict[str, Any] = {"values": values}
    if _comparable(snapshot, reference):
        assert reference is not None
        result["drift_reference"] = F.rank_drift(snapshot.attribution, reference.attribution)
        values["drift/reference"] = _mean(result["drift_reference"])
    if _comparable(snapshot, previous):
        assert previous is not None
        now, before = snapshot.attribution, previous.attribution
        drift = result["drift_previous"] = F.rank_drift(now, before)
        values["drift/previous"] = _mean(drift)
        values["drift/ssim"] = _mean(F.ssim_drift(now, before))
        values["drift/top_iou"] = _mean(F.top_iou_drift(now, before))
        values["drift/centre_shift"] = _mean(F.centre_shift(now, before))
        if snapshot.noise_floor is not None and previous.noise_floor is not None:
            known = torch.isfinite(drift)
            beyond = drift > torch.maximum(snapshot.noise_floor, previous.noise_floor)
            values["drift/significant"] = _mean(beyond[known].float())
    return result


def _comparable(snapshot: Snapshot, other: Snapshot | None) -> bool:
    return (
        other is not None
        and other.baselines == snapshot.baselines
        and other.layer == snapshot.layer
        and other.attribution.shape == snapshot.attribution.shape
        and torch.equal(other.target, snapshot.target)
    )


def _mean(values: Tensor | None) -> float | None:
    """The mean of the finite values, or ``None`` where there is none."""
    if values is None:
        return None
    finite = values[torch.isfinite(values)]
    return float(finite.mean()) if len(finite) else None
