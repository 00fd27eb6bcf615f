"""One fit's worth of looking: from the Trainer's data and model to snapshots that are logged, kept and shown."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from egcam_lightning.config import CallbackConfig
from egcam_lightning.data.batch import find_images, get
from egcam_lightning.data.loaders import SampleReader
from egcam_lightning.data.probe import Probe, build_probe, is_batch
from egcam_lightning.data.targets import chosen_targets, known_targets
from egcam_lightning.explain import ExpectedGradCAM
from egcam_lightning.explain.chunking import is_out_of_memory
from egcam_lightning.explain.isolation import isolated, uninitialised
from egcam_lightning.history.records import Occasion
from egcam_lightning.metrics.change import reference_of
from egcam_lightning.metrics.registry import build_metrics, needs_masks
from egcam_lightning.sinks.publisher import Publisher
from egcam_lightning.training.failsafe import Failsafe
from egcam_lightning.training.lightning_compat import (
    logger_step,
    to_model,
    unheard,
    validation_data,
    validation_source,
)
from egcam_lightning.training.probe_display import probe_images
from egcam_lightning.training.process_group import ProcessGroup
from egcam_lightning.training.run_directory import run_directory
from egcam_lightning.training.run_state import RunState
from egcam_lightning.training.scalars import log
from egcam_lightning.training.snapshotter import Snapshotter, Taken

_NOTICED_SECONDS = 1.5  # people wonder why nothing moves


class Session:
    """The explainer, the metrics and the outputs of one fit. It holds the model, and ends with the fit.

    Args:
        trainer: the Trainer.
        pl_module: its module.
        config: what the user asked for.
        run_state: what outlives the fit; snapshots are added to it.
        failsafe: where failures go that must not stop training.
        started: when the fit began, by :func:`time.perf_counter`.

    Raises:
        ValueError: where the user's settings do not fit the model or the data.
        MisconfigurationException: where the module cannot be called with images.

    """

    def __init__(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        config: CallbackConfig,
        run_state: RunState,
        failsafe: Failsafe,
        started: float,
    ) -> None:
        self._trainer = trainer
        self._module = pl_module
        self._config = config
        self._run_state = run_state
        self._failsafe = failsafe
        self._started = started
        self._process_group = ProcessGroup(trainer.strategy)
        self._last_seconds = 0.0
        self._waiting: Probe | None = None  # chosen, and not looked at yet
        self._snapshotter: Snapshotter | None = None
        self._output: Publisher | None = None
        self.run_dir: Path | None = None
        with self._timed(), validation_data(trainer, pl_module):
            batches = sum(trainer.num_val_batches)
            self._all_validate = self._process_group.all(batches > 0)
            if batches and not self._all_validate:
                failsafe.inform(
                    "A process has no validation batches: ExpectedGradCAMCallback takes the snapshots of epochs at "
                    "their end."
                )
            probe, initial = (self._process_group.broadcast_known(found) for found in self._read_if_it_fits())
            endless = trainer.num_training_batches == float("inf")
            run_state.baselines.prepare(self._process_group, initial, endless=endless)
            if probe is not None:
                self._waiting = probe
                try:
                    self._process_group.run_or_raise_everywhere(lambda: self._begin(probe))
                except (ValueError, MisconfigurationException):
                    raise
                except Exception as error:  # not a matter of the settings: tried again at the first validation
                    failsafe.report("the first look at the model", error)

    @property
    def elapsed(self) -> float:
        """Seconds since the fit began."""
        return time.perf_counter() - self._started

    @property
    def validates(self) -> bool:
        """Whether validation reaches every process, so that the snapshots of epochs can be taken in it."""
        trainer = self._trainer
        there = trainer.val_dataloaders is None or sum(trainer.num_val_batches) > 0  # or yet to be set up
        return self._all_validate and trainer.enable_validation and there

    def sample(self, batch: Any, batch_idx: int) -> None:
        """Let a training batch pass by the reservoir."""
        if self._run_state.baselines.wants(batch_idx):
            with self._timed():
                self._failsafe.guard(
                    "sampling baselines", lambda: self._run_state.baselines.update(self._images(batch))
                )

    def begin_with(self, batch: Any) -> None:
        """Take a validation batch as the probe, where the data could not be indexed, and begin where that failed.

        Args:
            batch: the first batch of this process; ``None`` where it has none.

        """
        if self._snapshotter is not None:
            return
        config, process_group = self._config, self._process_group

        def take() -> Probe | None:
            if self._waiting is not None or batch is None:
                return self._waiting
            return Probe.from_batch(batch, config.num_images, config.keys)

        def begin() -> None:
            probe = process_group.broadcast_known(process_group.run_or_raise_everywhere(take))
            if probe is not None:
                process_group.run_or_raise_everywhere(lambda: self._begin(probe))

        with self._timed():
            self._failsafe.guard("choosing the images", begin)

    def mark_pending(self) -> None:
        """The snapshot of an epoch follows behind this batch; a checkpoint may be written in between."""
        self._run_state.pending = self._trainer.current_epoch, logger_step(self._trainer, "step")

    def take_pending(self) -> None:
        """Take the snapshot that a checkpoint owes: Lightning resumes behind the validation that had yet to come."""
        callbacks: list[Any] = getattr(self._trainer, "callbacks", [])
        averages = any(kind.__name__ == "WeightAveraging" for one in callbacks for kind in type(one).__mro__)
        if self._run_state.pending is not None and not averages:  # averaged weights are there in validation alone
            self.snapshot("epoch", self._run_state.pending)

    def snapshot(self, kind: str, pending: tuple[int, int] | None = None) -> set[str]:
        """Take a snapshot if one is due, show it, keep it and log it.

        Args:
            kind: the occasion.
            pending: the epoch and step of one that is made up for; ``None`` for now.

        Returns:
            The keys whose values the Trainer has now, for those who monitor them.

        """
        run_state, schedule = self._run_state, self._run_state.schedule
        if kind != "start" and not self.validates and self._waiting is not None:
            self.begin_with(None)  # there is no validation to begin in
        look = self._snapshotter
        if look is None:
            return set()
        when = Occasion(*(pending or (self._trainer.current_epoch, logger_step(self._trainer, kind))), kind)
        run_state.pending = None if kind == "epoch" else run_state.pending
        if any(snapshot.key == (when.epoch, when.step, when.kind) for snapshot in run_state.history.snapshots[-2:]):
            return set()  # a checkpoint written inside validation fires the end of its epoch again
        # The first process decides, since every one takes part or none.
        if kind != "start" and not self._process_group.broadcast(schedule.due(self.elapsed)):
            if schedule.interval > 1:
                self._failsafe.inform(
                    "ExpectedGradCAMCallback takes snapshots less often, to stay within max_overhead="
                    f"{schedule.max_overhead:g} of the fit's time. Metrics monitored by EarlyStopping keep their last "
                    "value in between. Pass max_overhead=None to take them all."
                )
            return set()
        self._announce_wait()
        begin = time.perf_counter()
        taken = self._failsafe.guard("the snapshot", lambda: self._take(look, when))
        drawing = time.perf_counter()
        if taken is not None:
            past = run_state.history.snapshots
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
            overhead = self._process_group.broadcast(overhead)  # the others wait while the first one draws
            values = {f"{self._config.log_prefix}/{k}": v for k, v in {**taken.snapshot.metrics, **overhead}.items()}
            return log(values, when, self._trainer, self._module, self._failsafe, monitored=pending is None)

    def _announce_wait(self) -> None:
        """Say in the Trainer's progress bar that training waits, where it will be noticed.

        The first snapshot has just been announced; how long one takes is known from the one before.
        """
        bar, seconds = self._trainer.progress_bar_callback, self._last_seconds
        if bar is not None and getattr(bar, "is_enabled", True) and seconds > _NOTICED_SECONDS:
            message = f"Explaining {len(self._run_state.history.probe.images)} images ({seconds:.0f} s last time)"
            self._failsafe.guard("the progress message", lambda: bar.print(message))

    def finish(self) -> None:
        """Show what there is a last time."""
        if self._output is not None:
            with self._timed():
                self._output.finish(self._run_state.history)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Book the time that the body takes."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._run_state.schedule.overhead_seconds += time.perf_counter() - begin

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """Look at the module: inside, what it logs reaches nobody; behind, it is as it was.

        The copy of its weights that this takes fits where their gradients are in training.
        """
        module, seed = self._module, self._config.seed
        with unheard(self._trainer, module), isolated(module, seed=seed, weights=True):
            yield

    def _read(self) -> tuple[Probe | None, Tensor | None]:
        """Read the images to explain and the first baselines, as far as the data can be indexed."""
        trainer, module, config, guard = self._trainer, self._module, self._config, self._failsafe.guard
        reader = SampleReader(trainer, module)
        validation, training = (partial(to_model, trainer, module, validating=flag) for flag in (True, False))
        loader = validation_source(trainer)
        if loader is None:
            loader = trainer.train_dataloader
            if not is_batch(config.probe):
                rank_zero_warn("There are no validation data: training images are explained instead.")
        with self._looking():
            probe = build_probe(reader, loader, config.probe, config.num_images, config.keys, validation, guard)
            baselines = self._run_state.baselines
            return probe, baselines.collect(reader, trainer.train_dataloader, config.keys.input_key, training, guard)

    def _read_if_it_fits(self) -> tuple[Probe | None, Tensor | None]:
        """The same, or nothing where memory does not suffice: the first batches that pass by will do."""
        try:
            return self._process_group.run_or_raise_everywhere(self._read)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._failsafe.report("reading images to explain", error)
            return None, None

    def _images(self, batch: Any) -> Tensor:
        images: Tensor = get(batch, find_images(batch, self._config.keys.input_key))
        return images

    def _begin(self, probe: Probe) -> None:
        """Everything that can be wrong with the user's settings is found out here."""
        config, module, run_state = self._config, self._module, self._run_state
        lazy = uninitialised(module)
        if lazy is not None:
            self._failsafe.inform(
                f"ExpectedGradCAMCallback takes no snapshot before training, since {lazy!r} has no values until the "
                "first batch; the next ones it takes. Call the module with a batch before fit, or leave "
                "`num_sanity_val_steps` above 0, to have it."
            )
            return
        run_state.adopt(probe)
        assert run_state.probe is not None
        probe = run_state.probe
        explainer = ExpectedGradCAM(module, **config.explainer.arguments(forward_fn=self._forward))
        rows = torch.arange(min(len(probe), 4))
        inputs = probe.inputs(rows, module.device)
        with self._looking(), torch.no_grad():
            output = explainer.logits(self._try(*inputs))
            known = known_targets(config.target, probe.labels, len(probe), output, explainer.score)
            explainer.score.check(output, known if known is None or known.ndim == 1 else known[: len(output)])
            layer = explainer.find(*inputs)
            fast = explainer.is_fast(*inputs)
        if probe.targets is None and known is not None:
            run_state.probe = probe = probe.with_targets(known)
        metrics = build_metrics(config.metrics, masks=config.keys.masks_key is not None or probe.masks is not None)
        if probe.masks is None and any(map(needs_masks, metrics.values())):
            metrics = {key: metric for key, metric in metrics.items() if not needs_masks(metric)}
            self._failsafe.warn(
                "The checkpoint was written without `masks_key`, and its images, which are explained on, have no "
                "masks: no metrics are taken that need them. Begin a new run to have them."
            )
        assert explainer.grid is not None
        grid = explainer.grid
        view = probe_images(self._trainer, module, probe, config.class_names, config.normalization)
        run_state.show(view, layer, grid)
        self._snapshotter = Snapshotter(explainer, metrics, self._process_group, module.device, config.seed)
        self._find_output()
        rank_zero_info(
            f"ExpectedGradCAMCallback explains {len(probe)} images at layer {layer!r} (grid "
            f"{'x'.join(map(str, grid))}), on paths between "
            + ("its activations" if fast else "images, each draw a pass through the whole network")
            + (f"; files in {self.run_dir}" if self.run_dir else "")
        )

    def _find_output(self) -> Publisher | None:
        """Where snapshots are shown: in the first process, and nowhere in a dry run, which leaves no files behind."""
        if self._output is None and self._process_group.rank == 0 and not getattr(self._trainer, "fast_dev_run", False):

            def find() -> Publisher:
                history = self._run_state.history
                self.run_dir = run_directory(self._trainer, self._config.save_dir, history.prefix, history.run)
                self._run_state.look_in(self.run_dir)
                return Publisher(
                    self.run_dir,
                    self._trainer.loggers,
                    history.prefix,
                    self._failsafe,
                    alerts=self._config.alerts,
                    log_page_every=self._config.log_page_every,
                    colormap=self._config.colormap,
                )

            self._output = self._failsafe.guard("finding where files go", find)
        return self._output

    def _try(self, images: Tensor, *others: Tensor) -> Any:
        """What the module returns; where it cannot be called so, say what to write."""
        try:
            return self._forward(self._module, images, *others)
        except (TypeError, NotImplementedError, AttributeError, LookupError, ValueError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            # What torch says of shapes may as well be a fault of the moment: training goes on then.
            of_torch = isinstance(error, RuntimeError) and not isinstance(error, NotImplementedError)
            raise (RuntimeError if of_torch else MisconfigurationException)(
                f"Calling the module with images of shape {tuple(images.shape)} failed: {type(error).__name__}: "
                f"{error}. Pass `input_key` where the images that it takes are others of the batch; `forward_fn`, such "
                "as `lambda module, images: module.model(images)`, where it takes them in another way. Where it takes "
                "more of the batch than the images, name it in `additional_keys`."
            ) from error

    def _take(self, look: Snapshotter, when: Occasion) -> Taken | None:
        run_state, module = self._run_state, self._module
        assert run_state.probe is not None
        with ExitStack() as stack:
            self._process_group.run_or_raise_everywhere(lambda: stack.enter_context(self._looking()))
            found = run_state.baselines.current(look.process_group, run_state.probe, module.device)
            if found is None:
                self._failsafe.warn(
                    "There are no training images to serve as baselines yet; no snapshot is taken. The next ones will "
                    "have those that pass in training."
                )
                return None
            baselines, generation = found
            if run_state.probe.targets is None and when.kind == "epoch":
                run_state.probe = self._settle(run_state.probe, look)
            snapshots = run_state.history.snapshots
            taken = look.take(
                run_state.probe,
                baselines,
                generation,
                when,
                previous=snapshots[-1] if snapshots else None,
                reference=reference_of(snapshots, generation),
            )
        for key, error in taken.failures.items():
            self._failsafe.report(f"the metric {key!r}", error)
        metrics = taken.snapshot.metrics
        if "not_finite" in metrics:
            share = metrics["not_finite"]
            message = (
                f"The model gives NaN or infinity: {share:.0%} of the explanations are not finite. Look at the loss, "
                "and lower the learning rate or train in higher precision where it has diverged."
            )
            if self._failsafe.strict:
                raise FloatingPointError(message)
            self._failsafe.warn(message, kind="not finite")
        elif metrics.get("degenerate") == 1:
            self._failsafe.warn(
                "No map has anything positive: every heatmap is empty. Where it stays so as training goes on, pass "
                "another `target_layer`, or target='predicted'."
            )
        return taken

    def _settle(self, probe: Probe, look: Snapshotter) -> Probe:
        """Settle the explained classes, from what the model says of the whole probe, for good."""
        rows, _ = look.process_group.shard(len(probe))

        def settle() -> Tensor:
            with torch.no_grad():
                output = look.explainer.forward(*probe.inputs(rows, look.device))
            labels = None if probe.labels is None else probe.labels[rows].to(look.device)
            return chosen_targets(self._config.target, labels, output, look.explainer.score)

        return probe.with_targets(
            look.process_group.gather(look.process_group.run_or_raise_everywhere(settle), len(probe))
        )

    def _forward(self, module: LightningModule, images: Tensor, *others: Any) -> Any:
        """Call the module in the precision in which the validation loop does; all arithmetic around it is float32."""
        forward_fn = self._config.explainer.forward_fn
        with self._trainer.precision_plugin.forward_context():
            return module(images, *others) if forward_fn is None else forward_fn(module, images, *others)
