"""One fit's worth of looking: from the Trainer's data and model to snapshots that are logged, kept and shown."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from egcam_lightning.data.batch import find_images, get
from egcam_lightning.data.probe import Probe
from egcam_lightning.explain.isolation import uninitialised
from egcam_lightning.history.records import Occasion
from egcam_lightning.metrics.change import reference_of
from egcam_lightning.metrics.registry import AUDITED
from egcam_lightning.sinks.publisher import Publisher
from egcam_lightning.training.auditor import audit_everywhere, scalars_of
from egcam_lightning.training.first_look import look_at_model, read_data
from egcam_lightning.training.fit import Fit
from egcam_lightning.training.lightning_compat import (
    logger_step,
    validation_data,
    validation_follows,
)
from egcam_lightning.training.monitors import Monitors
from egcam_lightning.training.run_directory import make_publisher
from egcam_lightning.training.scalars import log
from egcam_lightning.training.snapshotter import Snapshotter, Taken, warn_of


class Session:
    """The explainer, the metrics and the outputs of one fit. It holds the model, and ends with the fit.

    Args:
        fit: the Trainer, its module, what the user asked for, and what outlives the fit.
        started: when the fit began, by :func:`time.perf_counter`.
        monitors: who monitors what is logged.

    Raises:
        ValueError, MisconfigurationException: where the user's settings do not fit the model or the data.

    """

    def __init__(self, fit: Fit, started: float, monitors: Monitors | None = None) -> None:
        self._fit = fit
        self._started = started
        self._monitors = monitors
        self._last_seconds = 0.0
        self._last_global_step = fit.trainer.global_step
        self._awaits_batch = False  # whether this validation has yet to show its first batch
        self._waiting: Probe | None = None  # chosen, and not looked at yet
        self._snapshotter: Snapshotter | None = None
        self._output: Publisher | None = None
        self.run_dir: Path | None = None
        with self._timed(), validation_data(fit.trainer, fit.module):
            batches = sum(fit.trainer.num_val_batches)
            self._all_validate = fit.process_group.all(batches > 0)
            if batches and not self._all_validate:
                fit.failsafe.inform("A process has no validation batches: epochs' snapshots are taken at their end.")
            probe, initial = (fit.process_group.broadcast_known(found) for found in read_data(fit))
            endless = fit.trainer.num_training_batches == float("inf")
            fit.run_state.baselines.prepare(fit.process_group, initial, endless=endless)
            if probe is not None:
                self._waiting = probe
                try:
                    fit.process_group.run_or_raise_everywhere(lambda: self._begin(probe))
                except (ValueError, MisconfigurationException):
                    raise
                except Exception as error:  # not a matter of the settings: tried again at the first validation
                    fit.failsafe.report("the first look at the model", error)

    @property
    def elapsed(self) -> float:
        """Seconds since the fit began."""
        return time.perf_counter() - self._started

    @property
    def begun(self) -> bool:
        """Whether images and layer are known."""
        return self._snapshotter is not None

    @property
    def validates(self) -> bool:
        """Whether validation reaches every process, so that the snapshots of epochs can be taken in it."""
        trainer = self._fit.trainer
        there = trainer.val_dataloaders is None or sum(trainer.num_val_batches) > 0  # or yet to be set up
        return self._all_validate and trainer.enable_validation and there

    def sample(self, batch: Any, batch_idx: int) -> None:
        """Let a training batch pass by the reservoir."""
        if self._fit.run_state.baselines.wants(batch_idx):
            with self._timed():
                self._fit.failsafe.guard(
                    "sampling baselines", lambda: self._fit.run_state.baselines.update(self._images(batch))
                )

    def begin_with(self, batch: Any) -> None:
        """Take a validation batch as the probe, where the data could not be indexed, and begin where that failed.

        Args:
            batch: the first batch of this process; ``None`` where it has none.

        """
        if self._snapshotter is not None:
            return
        config, process_group = self._fit.config, self._fit.process_group

        def take() -> Probe | None:
            if self._waiting is not None or batch is None:
                return self._waiting
            return Probe.from_batch(batch, config.num_images, config.keys)

        def begin() -> None:
            probe = process_group.broadcast_known(process_group.run_or_raise_everywhere(take))
            if probe is not None:
                process_group.run_or_raise_everywhere(lambda: self._begin(probe))

        with self._timed():
            self._fit.failsafe.guard("choosing the images", begin)

    def start(self, *, at_start: bool) -> None:
        """Take the snapshot before training, if asked to, or the one that a checkpoint still owes.

        Lightning resumes behind the validation that had yet to come when the checkpoint was written.
        """
        if at_start:
            self.snapshot("start")
        callbacks: list[Any] = getattr(self._fit.trainer, "callbacks", [])
        averages = any(kind.__name__ == "WeightAveraging" for one in callbacks for kind in type(one).__mro__)
        if self._fit.run_state.pending is not None and not averages:  # averaged weights are there in validation alone
            self.snapshot("epoch", self._fit.run_state.pending)
        if self._monitors is not None:
            self._monitors.begin(self._fit.module, self._fit.run_state.history)

    def batch_ended(self, batch_idx: int) -> None:
        """Close the reservoir with the epoch; take a snapshot every so many steps."""
        trainer = self._fit.trainer
        last = trainer.is_last_batch or batch_idx + 1 >= trainer.num_training_batches
        if last:
            self._fit.run_state.baselines.end_epoch()
        n, before, now = self._fit.config.every_n_train_steps, self._last_global_step, trainer.global_step
        self._last_global_step = now
        if self._in_epochs and (validation_follows(trainer) if self.validates else last):
            # The snapshot of the epoch follows behind this batch; a checkpoint may be written in between.
            self._fit.run_state.pending = trainer.current_epoch, logger_step(trainer, "step")
        # Batches that only accumulate gradients make no step, and several optimizers make several at once.
        elif n is not None and now // n > before // n:
            self.snapshot("step")

    def validation_began(self) -> None:
        """Expect a batch."""
        fits = self._fit.trainer.state.fn == "fit" and not self._fit.trainer.sanity_checking
        self._awaits_batch = fits and self.validates

    def validated(self, batch: Any) -> None:
        """Once a validation, take the snapshot of the epoch; ``batch`` is ``None`` where this process has none."""
        if not self._awaits_batch:
            return
        self._awaits_batch = False
        self.begin_with(batch)
        if self._in_epochs:
            self._snapshot_of_epoch()

    def epoch_ended(self) -> None:
        """Take the snapshot where nothing validates."""
        self._fit.run_state.baselines.end_epoch()
        if self._in_epochs and not self.validates:
            self._snapshot_of_epoch()

    def _snapshot_of_epoch(self) -> None:
        """Take the snapshot of an epoch, for which others may wait."""
        taken = self.snapshot("epoch")
        if self._monitors is not None:
            self._monitors.know(taken)
            self._monitors.tell()

    @property
    def _in_epochs(self) -> bool:
        """Whether this epoch is one of every n."""
        n = self._fit.config.every_n_epochs
        return n is not None and (self._fit.trainer.current_epoch + 1) % n == 0

    def snapshot(self, kind: str, pending: tuple[int, int] | None = None) -> set[str]:
        """Take a snapshot if one is due, show it, keep it and log it.

        Args:
            kind: the occasion.
            pending: the epoch and step of one that is made up for; ``None`` for now.

        Returns:
            The keys whose values the Trainer has now, for those who monitor them.

        """
        fit, run_state, schedule = self._fit, self._fit.run_state, self._fit.run_state.schedule
        if kind != "start" and not self.validates and self._waiting is not None:
            self.begin_with(None)  # there is no validation to begin in
        look = self._snapshotter
        if look is None:
            return set()
        when = Occasion(*(pending or (fit.trainer.current_epoch, logger_step(fit.trainer, kind))), kind)
        run_state.pending = None if kind == "epoch" else run_state.pending
        if any(snapshot.key == (when.epoch, when.step, when.kind) for snapshot in run_state.history.snapshots[-2:]):
            return set()  # a checkpoint written inside validation fires the end of its epoch again
        # The first process decides, since every one takes part or none.
        if kind != "start" and not fit.process_group.broadcast(schedule.due(self.elapsed)):
            if schedule.interval > 1:
                fit.failsafe.inform(schedule.explanation)
            return set()
        # How long one takes is known from the one before.
        fit.announce_wait(f"Explaining {len(run_state.history.probe.images)} images", self._last_seconds)
        begin = time.perf_counter()
        taken = fit.failsafe.guard("the snapshot", lambda: self._take(look, when))
        drawing = time.perf_counter()
        if taken is not None:
            past = run_state.history.snapshots
            n = fit.config.audit_every
            if n is not None and kind != "start" and (len(past) + 1) % n == 0:
                self._last_seconds = drawing - begin
                metrics = {**taken.snapshot.metrics, **self._audit()}
                taken = replace(taken, snapshot=replace(taken.snapshot, metrics=metrics))
                drawing = time.perf_counter()
            run_state.add(taken.snapshot)
            output = self._find_output()
            if output is not None:
                output.add(taken.snapshot, run_state.history, past)
        drawn = time.perf_counter() - drawing
        took = time.perf_counter() - begin
        self._last_seconds = took
        schedule.took(took)
        if taken is None:
            return set()
        with self._timed():
            overhead = {"overhead_seconds": took, "overhead_fraction": schedule.fraction(self.elapsed)}
            overhead |= {
                f"overhead/{part}_seconds": spent for part, spent in {**taken.seconds, "drawing": drawn}.items()
            }
            overhead = fit.process_group.broadcast(overhead)  # the others wait while the first one draws
            numbers = {**taken.snapshot.metrics, **overhead}
            return log(
                numbers, fit.config.log_prefix, when, fit.trainer, fit.module, fit.failsafe, monitored=pending is None
            )

    def _audit(self) -> dict[str, float]:
        """Audit the model; the values to log."""
        if self._snapshotter is None:
            return {}
        record = audit_everywhere(self._fit, self._last_seconds, self._fit.run_state.schedule.left(self.elapsed))
        if record is not None and self._output is not None:
            self._output.show_audit(record)
        return scalars_of(record)

    def conclude(self) -> None:
        """Audit the trained model, unless its last snapshot did, and show all."""
        fit, snapshots = self._fit, self._fit.run_state.history.snapshots
        if snapshots and not any(key in snapshots[-1].metrics for key in AUDITED):
            with self._timed():
                found = self._audit()
                when = Occasion(snapshots[-1].epoch, logger_step(fit.trainer, "end"), "end")
                if found:
                    log(found, fit.config.log_prefix, when, fit.trainer, fit.module, fit.failsafe)
                if self._output is not None:
                    self._output.alert(fit.run_state.history, found, {})
        self.finish()

    def finish(self) -> None:
        """Show what there is a last time."""
        if self._output is not None:
            with self._timed():
                self._output.finish(self._fit.run_state.history)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Book the time that the body takes."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._fit.run_state.schedule.overhead_seconds += time.perf_counter() - begin

    def _images(self, batch: Any) -> Tensor:
        images: Tensor = get(batch, find_images(batch, self._fit.config.keys.input_key))
        return images

    def _begin(self, probe: Probe) -> None:
        """Everything that can be wrong with the user's settings is found out here."""
        lazy = uninitialised(self._fit.module)
        if lazy is not None:
            self._fit.failsafe.inform(
                f"ExpectedGradCAMCallback takes no snapshot before training, since {lazy!r} has no values until the "
                "first batch; the next ones it takes. Call the module with a batch before fit, or leave "
                "`num_sanity_val_steps` above 0, to have it."
            )
            return
        self._snapshotter, what = look_at_model(self._fit, probe)
        self._find_output()
        files = f"; files in {self.run_dir}" if self.run_dir else ""
        rank_zero_info(f"ExpectedGradCAMCallback explains {what}{files}")

    def _find_output(self) -> Publisher | None:
        """Where snapshots are shown: in the first process, and nowhere in a dry run, which leaves no files behind."""
        fit = self._fit
        if self._output is None and fit.process_group.rank == 0 and not getattr(fit.trainer, "fast_dev_run", False):

            def find() -> Publisher:
                output = make_publisher(fit.trainer, fit.config, fit.run_state.history, fit.failsafe)
                self.run_dir = output.folder
                fit.run_state.look_in(output.folder)
                return output

            self._output = fit.failsafe.guard("finding where files go", find)
        return self._output

    def _take(self, look: Snapshotter, when: Occasion) -> Taken | None:
        run_state, module = self._fit.run_state, self._fit.module
        assert run_state.probe is not None
        with ExitStack() as stack:
            self._fit.process_group.run_or_raise_everywhere(lambda: stack.enter_context(self._fit.isolated()))
            found = run_state.baselines.current(look.process_group, run_state.probe, module.device)
            if found is None:
                self._fit.failsafe.warn(
                    "There are no training images to serve as baselines yet; no snapshot is taken. The next ones will "
                    "have those that pass in training."
                )
                return None
            baselines, generation = found
            if run_state.probe.targets is None and when.kind == "epoch":
                run_state.probe = look.settle_targets(run_state.probe, self._fit.config.target)
            snapshots = run_state.history.snapshots
            taken = look.take(
                run_state.probe,
                baselines,
                generation,
                when,
                previous=snapshots[-1] if snapshots else None,
                reference=reference_of(snapshots, generation),
            )
        warn_of(taken, self._fit.failsafe)
        return taken
