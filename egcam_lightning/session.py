"""One fit's worth of looking: from the Trainer's data and model to snapshots that are logged, kept and shown."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor
from torchmetrics import Metric

from egcam_lightning.batches import Key, find_images, get
from egcam_lightning.explain import ExpectedGradCAM
from egcam_lightning.explain.scores import check_logits, predicted_class
from egcam_lightning.faults import Faults
from egcam_lightning.isolation import isolated
from egcam_lightning.look import Look, When, build_metrics, reference_of
from egcam_lightning.output import Output, run_directory
from egcam_lightning.probe import Probe
from egcam_lightning.probing import build_probe, probe_images
from egcam_lightning.ranks import Ranks
from egcam_lightning.record import Record
from egcam_lightning.snapshot import Snapshot


@dataclass(frozen=True, eq=False)
class Settings:
    """What the user asked for, checked."""

    explainer: Mapping[str, Any]
    target: str | int | Callable[..., Any]
    metrics: str | tuple[str | Metric, ...]
    num_images: int
    probe: Any
    class_names: tuple[str, ...] | None
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None
    input_key: Key | None
    masks_key: Key | None
    seed: int
    save_dir: str | None
    prefix: str


class Session:
    """The explainer, the metrics and the outputs of one fit. It holds the model, and ends with the fit.

    Args:
        trainer: the Trainer.
        pl_module: its module.
        settings: what the user asked for.
        record: what outlives the fit; snapshots are added to it.
        faults: where failures go that must not stop training.

    Raises:
        ValueError: where the user's settings do not fit the model or the data.
        MisconfigurationException: where the module cannot be called with images.

    """

    def __init__(
        self, trainer: Trainer, pl_module: LightningModule, settings: Settings, record: Record, faults: Faults
    ) -> None:
        self._trainer = trainer
        self._module = pl_module
        self._settings = settings
        self._record = record
        self._faults = faults
        self._started = time.perf_counter()
        self._look: Look | None = None
        self._output: Output | None = None
        self.run_dir: Path | None = None
        with isolated(pl_module, seed=settings.seed):
            probe = build_probe(
                trainer, pl_module, settings.probe, settings.num_images, settings.input_key, settings.masks_key
            )
            record.baselines.prepare(trainer, pl_module, settings.input_key)
        if probe is not None:
            self._begin(probe)

    @property
    def elapsed(self) -> float:
        """Seconds since the fit began."""
        return time.perf_counter() - self._started

    def sample(self, batch: Any) -> None:
        """Let a training batch pass by the reservoir."""
        if self._record.baselines.open:
            self._faults.guard("sampling baselines", lambda: self._record.baselines.update(self._images(batch)))

    def offer(self, batch: Any) -> None:
        """Take a validation batch as the probe, where the data could not be indexed."""
        if self._look is None:
            settings = self._settings

            def begin() -> None:
                self._begin(Probe.from_batch(batch, settings.num_images, settings.input_key, settings.masks_key))

            self._faults.guard("choosing the images", begin)

    def snapshot(self, kind: str) -> None:
        """Take a snapshot if one is due, log it, keep it and show it."""
        look, record, schedule = self._look, self._record, self._record.schedule
        if look is None:
            return
        # The first process decides, since every one takes part or none.
        if kind != "start" and not look.ranks.first(schedule.due(self.elapsed)):
            if schedule.interval > 1:
                self._faults.inform(
                    "ExpectedGradCAMCallback takes snapshots less often, to stay within max_overhead="
                    f"{schedule.max_overhead:g} of the fit's time. Metrics monitored by EarlyStopping keep their last "
                    "value in between. Pass max_overhead=None to take them all."
                )
            return
        when = When(self._trainer.current_epoch, self._logger_step(kind), kind)
        if any(snapshot.key == (when.epoch, when.step) for snapshot in record.history.snapshots[-2:]):
            return  # a checkpoint written inside validation fires the end of its epoch again
        begin = time.perf_counter()
        snapshot = self._faults.guard("the snapshot", lambda: self._take(look, when))
        took = time.perf_counter() - begin
        schedule.took(took)
        if snapshot is None:
            return
        record.add(snapshot)
        overhead = {"overhead_seconds": took, "overhead_fraction": schedule.fraction(self.elapsed)}
        self._faults.guard("logging", lambda: self._log(snapshot, overhead))
        if self._output is not None:
            self._output.add(snapshot, record.history)
        schedule.overhead_seconds += time.perf_counter() - begin - took

    def finish(self) -> None:
        """Show what there is a last time."""
        if self._output is not None:
            self._output.finish(self._record.history)

    def _images(self, batch: Any) -> Tensor:
        images: Tensor = get(batch, find_images(batch, self._settings.input_key))
        return images

    def _begin(self, probe: Probe) -> None:
        """Everything that can be wrong with the user's settings is found out here."""
        settings, module, record = self._settings, self._module, self._record
        record.adopt(probe)
        assert record.probe is not None
        probe = record.probe
        explainer = ExpectedGradCAM(module, **settings.explainer)
        images = probe.inputs(torch.arange(min(len(probe), 4)), module.device)
        with isolated(module, seed=settings.seed), self._precision(), torch.no_grad():
            try:
                output = explainer.forward(images)
            except (TypeError, NotImplementedError, AttributeError) as error:
                raise MisconfigurationException(
                    f"Calling the module with images of shape {tuple(images.shape)} failed: {type(error).__name__}: "
                    f"{error}. Pass `forward_fn`, a function of (module, images) that returns the module's output."
                ) from error
            asked = self._asked_targets(probe)
            if explainer.scores_logits:
                check_logits(output, asked)
            layer = explainer.find(images)
        if probe.targets is None and asked is not None:
            record.probe = probe = probe.with_targets(asked)
        metrics = build_metrics(settings.metrics, masks=probe.masks is not None)
        ranks = Ranks(self._trainer.strategy)
        self._look = Look(explainer, metrics, ranks, module.device, settings.seed)
        record.show(probe_images(self._trainer, module, probe, settings.class_names, settings.normalization), layer)
        dry = getattr(self._trainer, "fast_dev_run", False)  # which leaves no files behind
        if ranks.rank == 0 and not dry:
            self.run_dir = run_directory(self._trainer, settings.save_dir, settings.prefix)
            self._output = Output(self.run_dir, self._trainer.loggers, record.history, self._faults)
        assert explainer.layout is not None
        rank_zero_info(
            f"ExpectedGradCAMCallback explains {len(probe)} images at layer {layer!r} (grid "
            f"{'x'.join(map(str, explainer.layout.grid))})" + (f", files in {self.run_dir}" if self.run_dir else "")
        )

    def _asked_targets(self, probe: Probe) -> Tensor | None:
        """The explained classes, as far as they can be known before the model has learnt anything."""
        if isinstance(self._settings.target, int):
            return torch.full((len(probe),), self._settings.target)
        return probe.labels if self._settings.target == "label" else None

    def _take(self, look: Look, when: When) -> Snapshot | None:
        record, module = self._record, self._module
        assert record.probe is not None
        with isolated(module, seed=self._settings.seed), self._precision():
            found = record.baselines.current(look.ranks, record.probe, module.device)
            if found is None:
                self._faults.warn("There are no training images to serve as baselines yet; no snapshot is taken.")
                return None
            baselines, generation = found
            if record.probe.targets is None and when.kind == "epoch":
                record.probe = self._settle(record.probe, look)
            snapshots = record.history.snapshots
            snapshot = look.take(
                record.probe,
                baselines,
                generation,
                when,
                previous=snapshots[-1] if snapshots else None,
                reference=reference_of(snapshots, generation),
            )
        for key, error in look.failures.items():
            self._faults.report(f"the metric {key!r}", error)
        if "not_finite" in snapshot.metrics:
            share = snapshot.metrics["not_finite"]
            message = f"The model gives NaN or infinity: {share:.0%} of the explanations are not finite."
            self._faults.warn(message, kind="not finite")
        elif snapshot.metrics.get("degenerate") == 1:
            self._faults.warn("No map has anything positive: every heatmap is empty.")
        return snapshot

    def _settle(self, probe: Probe, look: Look) -> Probe:
        """Settle the explained classes, from what the model says of the whole probe, for good."""
        rows, _ = look.ranks.share(len(probe))
        with torch.no_grad():
            output = look.explainer.forward(probe.inputs(rows, look.device))
        if callable(self._settings.target):
            labels = None if probe.labels is None else probe.labels[rows].to(look.device)
            targets = torch.as_tensor(self._settings.target(output, labels))
        else:
            targets = predicted_class(output)
        return probe.with_targets(look.ranks.gather(targets.to(look.device), len(probe)))

    def _log(self, snapshot: Snapshot, overhead: Mapping[str, float]) -> None:
        prefix = self._settings.prefix
        values = {f"{prefix}/{key}": value for key, value in {**snapshot.metrics, **overhead}.items()}
        if snapshot.when == "epoch":
            for key, value in values.items():
                self._module.log(
                    key,
                    value,
                    on_step=False,
                    on_epoch=True,
                    batch_size=1,
                    add_dataloader_idx=False,
                    sync_dist=self._trainer.world_size > 1,
                )
        else:  # `pl_module.log` would reach no logger here, or overwrite the epoch's value
            for logger in self._trainer.loggers:
                logger.log_metrics({**values, "epoch": float(snapshot.epoch)}, step=snapshot.step)

    def _precision(self) -> Any:
        """The precision in which the validation loop runs the model."""
        return self._trainer.precision_plugin.forward_context()

    def _logger_step(self, kind: str) -> int:
        """The step under which Lightning logs at this moment."""
        step = int(self._trainer.fit_loop.epoch_loop._batches_that_stepped)
        # At the end of an epoch without validation Lightning logs one step back.
        return max(step - 1, 0) if kind == "epoch" and not self._trainer.validating else step
