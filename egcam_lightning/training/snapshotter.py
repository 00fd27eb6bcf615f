"""Taking a snapshot: explain the probe, measure the explanation, and compare it with earlier ones."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchmetrics import Metric

from egcam_lightning.data.probe import Probe
from egcam_lightning.data.targets import Target, chosen_targets
from egcam_lightning.explain import ExpectedGradCAM
from egcam_lightning.explain.captured import rows_of
from egcam_lightning.explain.explanation import Explanation
from egcam_lightning.history.codec import round_maps
from egcam_lightning.history.records import Occasion, Snapshot
from egcam_lightning.metrics import CompletenessGap, ExplanationConsensus
from egcam_lightning.metrics import functional as F
from egcam_lightning.metrics.change import change_of
from egcam_lightning.metrics.evaluate import Evidence, evaluate
from egcam_lightning.training.failsafe import Failsafe
from egcam_lightning.training.few_at_once import explain_few_at_once
from egcam_lightning.training.process_group import ProcessGroup


@dataclass(frozen=True, eq=False)
class Taken:
    """A snapshot that was taken.

    Attributes:
        snapshot: of the whole probe, the same in every process.
        failures: what the metrics that failed raised, by key.
        seconds: what it took, by part.

    """

    snapshot: Snapshot
    failures: Mapping[str, Exception]
    seconds: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Snapshotter:
    """Takes snapshots of a probe.

    Attributes:
        explainer: the explainer.
        metrics: metrics by key; those that take images run on each process's share, the others on the whole.
        process_group: the processes that the probe is split over.
        device: where the model is.
        seed: the user's seed.

    """

    explainer: ExpectedGradCAM
    metrics: Mapping[str, Metric]
    process_group: ProcessGroup
    device: torch.device
    seed: int = 0

    def take(
        self,
        probe: Probe,
        baselines: Tensor,
        generation: int,
        when: Occasion,
        previous: Snapshot | None = None,
        reference: Snapshot | None = None,
    ) -> Taken:
        """Take a snapshot.

        Args:
            probe: the images, with their targets settled or not.
            baselines: ``(R, C, H, W)``, as the model takes them.
            generation: which baselines these are.
            when: the occasion.
            previous: the snapshot before, for drift.
            reference: the snapshot that drift is measured from.

        """
        begin = time.perf_counter()
        rows, own = self.process_group.shard(len(probe))
        inputs, explanation, floor = self.process_group.run_or_raise_everywhere(
            lambda: self._explain(probe, rows, baselines)
        )
        snapshot = self._gather(probe, explanation, floor, generation, when)
        explained = time.perf_counter()  # on a device too: the maps have come to the CPU by now
        change = change_of(snapshot, previous, reference)
        measured, failures = self._measure(probe, inputs, rows, own, baselines, explanation, snapshot)
        values = {**_describe(snapshot), **self._null(probe, snapshot), **measured, **change.values}
        finite = {key: float(value) for key, value in values.items() if value is not None and math.isfinite(value)}
        seconds = {"explanation": explained - begin, "metrics": time.perf_counter() - explained}
        snapshot = replace(
            snapshot,
            # Logging waits for all processes key by key: what the first one measured is what all of them log.
            metrics=self.process_group.broadcast(finite),
            drift_previous=change.drift_previous,
            drift_reference=change.drift_reference,
        )
        return Taken(snapshot, failures, seconds)

    def settle_targets(self, probe: Probe, target: Target) -> Probe:
        """Settle the explained classes, from what the model says of the whole probe, for good."""
        rows, _ = self.process_group.shard(len(probe))

        def settle() -> Tensor:
            with torch.no_grad():
                output = self.explainer.forward(*probe.inputs(rows, self.device))
            labels = None if probe.labels is None else probe.labels[rows].to(self.device)
            return chosen_targets(target, labels, output, self.explainer.score)

        settled = self.process_group.run_or_raise_everywhere(settle)
        return probe.with_targets(self.process_group.gather(settled, len(probe)))

    def _explain(
        self, probe: Probe, rows: Tensor, baselines: Tensor
    ) -> tuple[tuple[Tensor, ...], Explanation, Tensor | None]:
        """The inputs of this process's share of the probe, their explanation, and the noise floor of each."""
        inputs = probe.inputs(rows, self.device)
        targets = None if probe.targets is None else probe.targets[rows].to(self.device)
        explanation, floor = explain_few_at_once(
            self.explainer, inputs, baselines, targets, rows.tolist(), seed=self.seed
        )
        return inputs, explanation, floor

    def _gather(
        self, probe: Probe, explanation: Explanation, floor: Tensor | None, generation: int, when: Occasion
    ) -> Snapshot:
        """The snapshot of the whole probe, without what is measured on it."""

        def whole(share: Tensor) -> Tensor:
            return self.process_group.gather(share.to(self.device), len(probe))

        sets = probe.target_sets
        return Snapshot(
            epoch=when.epoch,
            step=when.step,
            when=when.kind,
            layer=self.explainer.perturbation.at(explanation.layer),
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

    def _measure(
        self,
        probe: Probe,
        inputs: tuple[Tensor, ...],
        rows: Tensor,
        own: int,
        baselines: Tensor,
        explanation: Explanation,
        snapshot: Snapshot,
    ) -> tuple[dict[str, float], dict[str, Exception]]:
        """Evaluate the metrics; ``inputs`` are those of the ``rows`` of the probe, of which the first ``own`` count."""
        images, *others = inputs
        sets = probe.target_sets
        targets = explanation.target if sets is None else sets[rows].to(self.device)
        score_of = self.process_group.run_or_raise_everywhere(lambda: self.explainer.bind(images, targets, *others))
        index = rows.to(self.device)

        def explain(points: Tensor, places: Tensor) -> Tensor:
            return self.explainer(
                _in_type(points, probe.dtype),
                baselines,
                targets[places],
                additional_forward_args=rows_of(others, places),
                image_index=index[places].tolist(),  # the same draws as the image's own, in whichever process
            ).attribution

        whole = {
            "attribution": snapshot.attribution,
            "target": snapshot.target,
            "score": snapshot.score,
            "baseline_score": snapshot.baseline_score,
            "off_grid": snapshot.off_grid,
        }
        evidence = Evidence(
            images=images[:own],
            attribution=explanation.attribution[:own],
            target=explanation.target[:own],
            scores=explanation.score[:own],
            whole=whole if probe.masks is None else {**whole, "mask": probe.masks},
            score_fn=lambda points, places, probability: score_of(_in_type(points, probe.dtype), places, probability),
            explain_fn=explain,
        )
        return evaluate(self.metrics, evidence, self.process_group.run_or_raise_everywhere)

    def _null(self, probe: Probe, snapshot: Snapshot) -> dict[str, float]:
        """The consensus that maps lying evenly on the objects would have, beside a consensus that is measured."""
        if probe.masks is None or not any(isinstance(one, ExplanationConsensus) for one in self.metrics.values()):
            return {}
        null = F.consensus_null(probe.masks, snapshot.target, tuple(snapshot.attribution.shape[1:]))
        return {} if null is None else {"consensus_null": float(null)}


def warn_of(taken: Taken, failsafe: Failsafe) -> None:
    """Say what went wrong in a snapshot that was taken.

    Raises:
        FloatingPointError: of maps that are not finite, where failures are to be raised.

    """
    for key, error in taken.failures.items():
        failsafe.report(f"the metric {key!r}", error)
    metrics = taken.snapshot.metrics
    if "not_finite" in metrics:
        share = metrics["not_finite"]
        message = (
            f"The model gives NaN or infinity: {share:.0%} of the explanations are not finite. Look at the loss, "
            "and lower the learning rate or train in higher precision where it has diverged."
        )
        if failsafe.strict:
            raise FloatingPointError(message)
        failsafe.warn(message, kind="not finite")
    elif metrics.get("degenerate") == 1:
        failsafe.warn(
            "No map has anything positive: every heatmap is empty. Where it stays so as training goes on, pass "
            "another `target_layer`, or target='predicted'."
        )


def _in_type(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Images as the model takes them: whole numbers where it takes those."""
    if dtype.is_floating_point or dtype == images.dtype:
        return images.to(dtype)
    limits = torch.iinfo(dtype)
    return images.round().clamp(limits.min, limits.max).to(dtype)


def _describe(snapshot: Snapshot) -> dict[str, float | None]:
    """What needs nothing but the maps and scores."""
    maps, off_grid = snapshot.attribution, snapshot.off_grid
    placed = maps.flatten(1).sum(1)
    gap = CompletenessGap(sync_on_compute=False)
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
