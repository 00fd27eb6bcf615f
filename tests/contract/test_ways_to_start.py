"""Every way in which people start a Trainer: snapshots are taken when they should be, under Lightning's own steps."""

from __future__ import annotations

import csv
import signal
import warnings
from pathlib import Path

import pytest
import pytorch_lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import BatchSizeFinder, EarlyStopping, LearningRateFinder, ModelCheckpoint
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities import CombinedLoader
from torch.nn.functional import cross_entropy
from torch.utils.data import IterableDataset, TensorDataset

from egcam_lightning import History
from tests.support.fits import Net, fit, make_callback, make_trainer, train_loader, val_loader
from tests.support.pictures import squares

pytestmark = pytest.mark.filterwarnings("ignore:.*already contains a `Trainer`.*", "ignore::DeprecationWarning")

ORDINARY = [(0, 0, "start"), (0, 3, "epoch"), (1, 7, "epoch")]  # two epochs of four steps


def taken(callback) -> list[tuple[int, int, str]]:
    """The snapshots, by epoch, step and occasion."""
    return [(s.epoch, s.step, s.when) for s in callback.history]


def rows(trainer: Trainer) -> list[dict[str, str]]:
    """What CSVLogger wrote."""
    with open(f"{trainer.logger.log_dir}/metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def logged_steps(trainer: Trainer, key: str = "egcam/degenerate") -> list[int]:
    """The steps under which something was logged."""
    return [int(row["step"]) for row in rows(trainer) if row.get(key)]


class Counter(Callback):
    """Counts what the user's own callbacks see."""

    def __init__(self) -> None:
        self.validations = self.sanity_keys = 0

    def on_sanity_check_end(self, trainer, pl_module):
        self.sanity_keys = sum(key.startswith("egcam") for key in trainer.callback_metrics)

    def on_validation_end(self, trainer, pl_module):
        self.validations += not trainer.sanity_checking


class Numbers(IterableDataset):
    """The samples of a data set one after the other, over and over when told so; nothing can be indexed."""

    def __init__(self, data: TensorDataset, endless: bool = False) -> None:
        self.data, self.endless = data, endless

    def __iter__(self):
        while True:
            yield from self.data
            if not self.endless:
                return


# ---- fit


def test_fit_takes_a_snapshot_before_training_and_one_at_each_validation(tmp_path):
    callback = make_callback()
    trainer, _ = fit(tmp_path, callback)
    assert taken(callback) == ORDINARY
    # In CSVLogger's file the values stand in the rows in which Lightning put the module's own.
    assert logged_steps(trainer) == [0, 3, 7]
    assert [float(row["epoch"]) for row in rows(trainer) if row["egcam/degenerate"]] == [0, 0, 1]
    assert logged_steps(trainer, "val_loss") == [3, 7]
    assert {row["step"] for row in rows(trainer) if row["val_loss"]} <= {
        row["step"] for row in rows(trainer) if row["egcam/degenerate"]
    }


def test_nothing_is_taken_or_logged_in_the_sanity_check(tmp_path):
    callback, counter = make_callback(log_at_start=False), Counter()
    trainer, _ = fit(tmp_path, callback, counter, num_sanity_val_steps=2)
    assert taken(callback) == ORDINARY[1:]
    assert counter.sanity_keys == 0
    assert logged_steps(trainer) == [3, 7]


@pytest.mark.parametrize("every", [1, 2])
def test_without_a_sanity_check_nothing_is_missing(tmp_path, every):
    callback, counter = make_callback(), Counter()
    trainer, _ = fit(tmp_path, callback, counter, num_sanity_val_steps=0, check_val_every_n_epoch=every, max_epochs=4)
    expected = [(n, 4 * n + 3, "epoch") for n in range(4) if (n + 1) % every == 0]
    assert taken(callback) == [(0, 0, "start"), *expected]
    assert counter.validations == len(expected)
    assert logged_steps(trainer) == [0, *(step for _, step, _ in expected)]
    labels = squares(16, seed=1).tensors[1]
    assert torch.equal(callback.history.probe.labels, labels[::4])  # of the validation data, though set up later


def test_mid_epoch_validation_and_steps_between_are_each_taken_once(tmp_path):
    callback = make_callback(every_n_train_steps=2)
    trainer, _ = fit(tmp_path, callback, train=train_loader(squares(48)), val_check_interval=3, max_epochs=1)
    # Behind steps 3 and 6 there is a validation; of steps 2, 4 and 6 the last is left to it.
    assert taken(callback) == [(0, 0, "start"), (0, 1, "step"), (0, 2, "epoch"), (0, 3, "step"), (0, 5, "epoch")]
    assert logged_steps(trainer) == [0, 1, 2, 3, 5]


def test_a_step_snapshot_never_replaces_the_validations_own(tmp_path):
    callback = make_callback(every_n_train_steps=3)
    stopping = EarlyStopping("egcam/degenerate", patience=9)
    fit(tmp_path, callback, stopping, train=train_loader(squares(48)), val_check_interval=3, max_epochs=1)
    assert taken(callback) == [(0, 0, "start"), (0, 2, "epoch"), (0, 5, "epoch")]


def test_steps_count_from_the_first_full_window(tmp_path):
    """With gradients accumulating there is no step yet behind the first batch, whatever zero is a multiple of."""
    callback = make_callback(every_n_train_steps=2, every_n_epochs=None, log_at_start=False)
    fit(tmp_path, callback, accumulate_grad_batches=2)
    assert [s.when for s in callback.history] == ["step", "step"]  # of 4 steps in all
    assert [s.epoch for s in callback.history] == [0, 1]


def test_with_two_optimizers_no_multiple_is_stepped_over(tmp_path):
    class Two(Net):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(cross_entropy(self(batch[0]), batch[1]))
                optimizer.step()

        def configure_optimizers(self):
            return [torch.optim.SGD(part.parameters(), 0.05) for part in (self.features, self.head)]

    callback = make_callback(every_n_train_steps=3, every_n_epochs=None, log_at_start=False)
    fit(tmp_path, callback, net=Two(), max_epochs=1, train=train_loader(squares(48)))
    # Lightning counts each optimizer's step: 2, 4, 6, ... 12, which passes 3, 6, 9 and 12.
    assert [s.step for s in callback.history] == [1, 2, 4, 5]


def test_one_batch_an_epoch_still_gives_every_epoch_its_snapshot(tmp_path):
    callback = make_callback()
    trainer, _ = fit(tmp_path, callback, EarlyStopping("egcam/degenerate", patience=9), overfit_batches=1)
    assert taken(callback) == [(0, 0, "start"), (0, 0, "epoch"), (1, 1, "epoch")]
    assert [s.when for s in History.load(callback.run_dir)] == ["start", "epoch", "epoch"]
    assert len(list(Path(callback.run_dir).glob("panels/*.png"))) == 3
    assert logged_steps(trainer)[-1] == 1


# ---- fit again, and other functions


def test_fit_again_on_the_same_trainer_goes_on(tmp_path):
    callback = make_callback()
    trainer, net = fit(tmp_path, callback)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(net, train_loader(), val_loader())
    assert taken(callback) == [*ORDINARY, (2, 11, "epoch"), (3, 15, "epoch")]
    assert len(History.load(callback.run_dir)) == 5
    trainer.fit(net, train_loader(), val_loader())  # there is nothing left to do
    assert len(callback.history) == 5


def test_a_new_training_with_the_same_callback_starts_a_new_history(tmp_path):
    callback = make_callback()
    first, _ = fit(tmp_path, callback)
    one = callback.history
    second, _ = fit(tmp_path, callback)
    assert first.logger.log_dir != second.logger.log_dir
    assert taken(callback) == ORDINARY
    assert callback.history is not one
    for now, then in zip(callback.history, one, strict=True):  # and is what it would be with a new instance
        assert torch.equal(now.attribution, then.attribution)
        assert now.baselines == then.baselines
    assert len(History.load(callback.run_dir)) == 3


@pytest.mark.parametrize("function", ["validate", "test", "predict"])
def test_other_functions_take_no_snapshot(tmp_path, function):
    callback = make_callback()
    trainer = make_trainer(tmp_path, callback)
    net = Net()
    net.predict_step = lambda batch, batch_idx: net(batch[0])
    getattr(trainer, function)(net, val_loader())
    assert taken(callback) == []
    trainer.fit(net, train_loader(), val_loader())
    assert taken(callback) == ORDINARY
    getattr(trainer, function)(net, val_loader())
    assert taken(callback) == ORDINARY
    assert not any(key.startswith("egcam") for key in trainer.callback_metrics) or function == "predict"


# ---- trials


@pytest.mark.parametrize("logger", [True, False])
def test_fast_dev_run_runs_through_and_leaves_no_files(tmp_path, logger):
    callback = make_callback()
    fit(tmp_path, callback, fast_dev_run=True, logger=logger)
    assert taken(callback) == [(0, 0, "start"), (0, 0, "epoch")]
    assert callback.run_dir is None
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_deterministic_algorithms_are_enough(tmp_path):
    callback = make_callback(metrics="default")
    try:
        fit(tmp_path, callback, deterministic=True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert taken(callback) == ORDINARY


def test_barebones_takes_nothing_and_writes_nothing(tmp_path):
    callback = make_callback()
    trainer, _ = fit(tmp_path, callback, barebones=True, enable_progress_bar=False, log_every_n_steps=0, max_epochs=1)
    assert trainer.global_step == 4
    assert taken(callback) == []
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


class Tunable(Net):
    def __init__(self) -> None:
        super().__init__()
        self.lr, self.batch_size = 0.05, 2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)

    def train_dataloader(self):
        return train_loader(batch_size=self.batch_size)

    def val_dataloader(self):
        return val_loader()


def test_the_tuner_takes_nothing_and_the_fit_behind_it_everything(tmp_path):
    callback = make_callback()
    seed_everything(0, verbose=False)
    trainer, net = make_trainer(tmp_path, callback), Tunable()
    tuner = Tuner(trainer)
    tuner.scale_batch_size(net, steps_per_trial=1, init_val=4, max_trials=2)
    tuner.lr_find(net, num_training=4)
    assert taken(callback) == []
    steps = 32 // net.batch_size
    trainer.fit(net)
    assert taken(callback) == [(0, 0, "start"), (0, steps - 1, "epoch"), (1, 2 * steps - 1, "epoch")]


@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize(
    "finder",
    [
        lambda: LearningRateFinder(num_training_steps=4),
        lambda: BatchSizeFinder(steps_per_trial=1, init_val=4, max_trials=2),
    ],
    ids=["learning rate", "batch size"],
)
def test_the_finders_trials_are_no_part_of_the_fit(tmp_path, finder, ours_first):
    callback = make_callback()
    seed_everything(0, verbose=False)
    net = Tunable()
    trainer = make_trainer(tmp_path, *([callback, finder()] if ours_first else [finder(), callback]))
    trainer.fit(net)
    steps = 32 // net.batch_size
    assert taken(callback) == [(0, 0, "start"), (0, steps - 1, "epoch"), (1, 2 * steps - 1, "epoch")]
    assert logged_steps(trainer) == [0, steps - 1, 2 * steps - 1]


# ---- without validation


class Trains(Net):
    """Logs its training loss at the end of each epoch."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss


class Unvalidated(Trains):
    validation_step = LightningModule.validation_step


class GivesEmptyList(Trains):
    def val_dataloader(self):
        return []


@pytest.mark.parametrize("stopping_first", [True, False])
@pytest.mark.parametrize(
    "way",
    [
        lambda: {"net": Trains(), "limit_val_batches": 0},
        lambda: {"net": Trains(), "val": ()},
        lambda: {"net": Unvalidated()},
        lambda: {"net": GivesEmptyList(), "val": "none"},
        lambda: {"net": Trains(), "val": "none"},
    ],
    ids=["limit_val_batches=0", "empty list", "no validation_step", "val_dataloader() empty", "no loader"],
)
def test_without_validation_epochs_end_with_a_snapshot_of_training_images(tmp_path, way, stopping_first):
    callback, stopping = make_callback(), EarlyStopping("egcam/degenerate", patience=9, check_on_train_epoch_end=True)
    ours = [stopping, callback] if stopping_first else [callback, stopping]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        arguments = way()
        if arguments.get("val") == "none":
            seed_everything(0, verbose=False)
            trainer = make_trainer(tmp_path, *ours)
            trainer.fit(arguments["net"], train_loader())
        else:
            trainer, _ = fit(tmp_path, *ours, **arguments)
    assert taken(callback) == ORDINARY
    assert logged_steps(trainer) == [0, 3, 7]
    assert logged_steps(trainer, "train_loss") == [3, 7]
    assert torch.equal(callback.history.probe.labels, squares(32).tensors[1][::8])
    told = [str(w.message) for w in caught if "no validation data: training images are explained" in str(w.message)]
    assert len(told) == 1


# ---- data of every kind


def test_of_several_validation_loaders_the_first_is_explained_once(tmp_path):
    callback = make_callback()
    trainer, _ = fit(tmp_path, callback, val=[val_loader(), val_loader(squares(24, seed=2))])
    assert taken(callback) == ORDINARY
    assert torch.equal(callback.history.probe.labels, squares(16, seed=1).tensors[1][::4])
    assert logged_steps(trainer) == [0, 3, 7]
    assert not [key for key in trainer.callback_metrics if key.startswith("egcam") and "dataloader_idx" in key]


class TakesPairs(Net):
    """Trains on batches of two loaders, and insists on their structure when they are brought to the device."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return {"big": batch["big"], "small": batch["small"]} if self.trainer.training else batch

    def training_step(self, batch, batch_idx):
        return sum(super(TakesPairs, self).training_step(batch[name], batch_idx) for name in ("big", "small"))


@pytest.mark.parametrize("mode", ["min_size", "max_size_cycle"])
def test_a_combined_loader_for_training_gives_baselines_as_it_gives_batches(tmp_path, mode):
    callback = make_callback()
    loaders = {"big": train_loader(squares(32)), "small": train_loader(squares(16, seed=3))}
    trainer, _ = fit(tmp_path, callback, net=TakesPairs(), train=CombinedLoader(loaders, mode))
    steps = {"min_size": 2, "max_size_cycle": 4}[mode]
    assert taken(callback) == [(0, 0, "start"), (0, steps - 1, "epoch"), (1, 2 * steps - 1, "epoch")]
    assert [s.baselines for s in callback.history] == [0, 1, 1]
    assert logged_steps(trainer) == [0, steps - 1, 2 * steps - 1]


def test_endless_training_data_are_explained_at_each_validation(tmp_path):
    callback = make_callback()
    train = train_loader(Numbers(squares(32), endless=True), shuffle=False)
    trainer, _ = fit(tmp_path, callback, train=train, max_steps=9, max_epochs=-1, val_check_interval=3)
    # Before training nothing has been seen that could serve as a baseline.
    assert [(step, when) for _, step, when in taken(callback)] == [(2, "epoch"), (5, "epoch"), (8, "epoch")]
    assert logged_steps(trainer) == logged_steps(trainer, "val_loss") == [2, 5, 8]
    assert len({s.baselines for s in callback.history}) == 3  # of ever more images: never compared
    assert all(s.drift_previous is None for s in callback.history)


def test_endless_training_data_with_a_limit_settle_on_their_baselines(tmp_path):
    callback = make_callback(baseline_samples=24)
    train = train_loader(Numbers(squares(32), endless=True), shuffle=False)
    fit(tmp_path, callback, train=train, max_steps=9, max_epochs=-1, val_check_interval=3)
    assert [s.baselines for s in callback.history] == [1, 1, 1]
    assert callback.history[-1].drift_previous is not None


def test_endless_training_data_in_epochs_of_limited_batches(tmp_path):
    callback = make_callback()
    train = train_loader(Numbers(squares(32), endless=True), shuffle=False)
    fit(tmp_path, callback, train=train, limit_train_batches=4)
    assert taken(callback) == ORDINARY[1:]


def test_validation_data_that_cannot_be_indexed_give_their_first_batch(tmp_path):
    callback = make_callback()
    trainer, _ = fit(tmp_path, callback, val=val_loader(Numbers(squares(16, seed=1))))
    assert taken(callback) == ORDINARY[1:]
    assert torch.equal(callback.history.probe.labels, squares(16, seed=1).tensors[1][:4])
    assert logged_steps(trainer) == [3, 7]


def test_loaders_that_are_loaded_anew_each_epoch_change_nothing(tmp_path):
    class Reloads(Net):
        loaded = 0

        def train_dataloader(self):
            return train_loader()

        def val_dataloader(self):
            self.loaded += 1
            return val_loader()

    callback, net = make_callback(), Reloads()
    seed_everything(0, verbose=False)
    trainer = make_trainer(tmp_path, callback, reload_dataloaders_every_n_epochs=1, max_epochs=3)
    trainer.fit(net)
    loaded = net.loaded
    assert taken(callback) == [*ORDINARY, (2, 11, "epoch")]
    seed_everything(0, verbose=False)
    alone = Reloads()
    make_trainer(tmp_path, reload_dataloaders_every_n_epochs=1, max_epochs=3).fit(alone)
    assert alone.loaded == loaded


# ---- instances


def test_two_instances_with_different_prefixes_keep_apart(tmp_path):
    one = make_callback(log_prefix="early", target_layer="features.1")
    two = make_callback(log_prefix="late", target_layer="features.4", every_n_epochs=2)
    checkpoint = ModelCheckpoint(save_last=True)
    trainer, _ = fit(tmp_path, one, two, checkpoint, enable_checkpointing=True)
    assert taken(one) == ORDINARY
    assert taken(two) == [ORDINARY[0], ORDINARY[2]]
    assert {s.layer for s in one.history} == {"features.1"}
    assert {s.layer for s in two.history} == {"features.4"}
    assert logged_steps(trainer, "early/degenerate") == [0, 3, 7]
    assert logged_steps(trainer, "late/degenerate") == [0, 7]
    assert one.run_dir != two.run_dir
    assert [len(History.load(callback.run_dir)) for callback in (one, two)] == [3, 2]
    states = torch.load(checkpoint.last_model_path, weights_only=True)["callbacks"]
    assert sorted(len(states[callback.state_key]["snapshots"]) for callback in (one, two)) == [2, 3]


def test_two_instances_with_the_same_prefix_are_refused(tmp_path):
    # By Lightning, which could not tell their states apart ...
    with pytest.raises(RuntimeError, match=r"`callback.state_key` must be unique"):
        make_trainer(tmp_path, make_callback(), make_callback(target_layer="features.1"))
    # ... and by us where it does not look.
    trainer = make_trainer(tmp_path, make_callback())
    trainer.callbacks.append(make_callback(target_layer="features.1"))
    with pytest.raises(MisconfigurationException, match=r"log under the prefix 'egcam'. Give one of them another"):
        trainer.fit(Net(), train_loader(), val_loader())


# ---- precision


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_the_model_is_explained_in_the_precision_in_which_it_is_validated(tmp_path, precision):
    validated, explained = set(), set()  # what the module itself holds is put back behind each explanation

    class Listens(Net):
        validating = False

        def forward(self, x):
            if not self.training:
                seen = validated if self.validating else explained
                seen.add((x.dtype, torch.get_default_dtype(), torch.is_autocast_enabled("cpu")))
            return super().forward(x)

        def validation_step(self, batch, batch_idx):
            self.validating = True
            super().validation_step(batch, batch_idx)
            self.validating = False

    callback = make_callback(metrics=("infidelity", "max_sensitivity"))
    fit(tmp_path, callback, net=Listens(), precision=precision)
    assert explained == validated
    assert len(explained) == 1
    # What is made of the gradients is float32, whatever they came from.
    assert {s.attribution.dtype for s in callback.history} == {torch.float32}
    assert taken(callback) == ORDINARY


# ---- ends


def test_a_stop_that_is_asked_for_still_gives_its_validation_a_snapshot(tmp_path):
    class Stops(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.should_stop = batch_idx == 1

    callback = make_callback(every_n_train_steps=2)
    trainer, _ = fit(tmp_path, Stops(), callback)
    assert taken(callback) == [(0, 0, "start"), (0, 1, "epoch")]
    assert logged_steps(trainer) == [0, 1]
    assert (Path(callback.run_dir) / "report.html").is_file()


@pytest.mark.parametrize(("error", "raised"), [(KeyboardInterrupt, SystemExit), (RuntimeError, RuntimeError)])
def test_an_end_before_the_end_leaves_a_whole_history_and_a_page(tmp_path, error, raised):
    class Interrupts(Net):
        def training_step(self, batch, batch_idx):
            if self.trainer.current_epoch == 1 and batch_idx == 1:
                raise error("by hand")
            return super().training_step(batch, batch_idx)

    callback = make_callback()
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(raised):
            fit(tmp_path, callback, net=Interrupts())
    finally:
        signal.signal(signal.SIGINT, before)  # the Trainer ignores a second Ctrl+C from here on
    assert taken(callback) == ORDINARY[:2]
    assert callback._session is None  # which holds the model, and nothing is torn down after an exception
    assert [s.key for s in History.load(callback.run_dir)] == [s.key for s in callback.history]
    assert (Path(callback.run_dir) / "report.html").stat().st_mtime >= (
        Path(callback.run_dir) / "probe.npz"
    ).stat().st_mtime
    fit(tmp_path, callback)  # and the instance serves again
    assert taken(callback) == ORDINARY


@pytest.mark.parametrize("ours_first", [True, False])
def test_early_stopping_and_checkpoints_can_monitor_what_is_logged(tmp_path, ours_first):
    callback = make_callback(metrics=("infidelity", "insertion_auc"), log_at_start=False)
    stopping = EarlyStopping(monitor="egcam/infidelity", mode="min", patience=1, min_delta=1e9)
    checkpoint = ModelCheckpoint(monitor="egcam/insertion_auc", mode="max", save_top_k=1)
    others = [stopping, checkpoint]
    trainer, _ = fit(
        tmp_path,
        *([callback, *others] if ours_first else [*others, callback]),
        enable_checkpointing=True,
        max_epochs=4,
    )
    # Nothing improves by 1e9, so that the second epoch is the last.
    assert taken(callback) == ORDINARY[1:]
    assert trainer.should_stop
    assert float(stopping.best_score) == pytest.approx(callback.history[0].metrics["infidelity"], rel=1e-5)
    best = max(s.metrics["insertion_auc"] for s in callback.history)
    assert float(checkpoint.best_model_score) == pytest.approx(best, rel=1e-5)
    assert Path(checkpoint.best_model_path).is_file()


# ---- the older name


def test_a_trainer_of_pytorch_lightning_is_as_good(tmp_path):
    from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Old(pytorch_lightning.LightningModule):
        forward, training_step, validation_step = Net.forward, Net.training_step, Net.validation_step
        configure_optimizers = Net.configure_optimizers

        def __init__(self):
            super().__init__()
            self.features, self.head = Net().features, Net().head

    callback = make_callback()
    seed_everything(0, verbose=False)
    trainer = pytorch_lightning.Trainer(
        max_epochs=2, accelerator="cpu", callbacks=[callback], enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, log_every_n_steps=1, default_root_dir=tmp_path,
        logger=[CSVLogger(tmp_path), TensorBoardLogger(tmp_path)],
    )  # fmt: skip
    trainer.fit(Old(), train_loader(), val_loader())
    assert taken(callback) == ORDINARY
    assert logged_steps(trainer) == [0, 3, 7]
    reader = EventAccumulator(trainer.loggers[1].log_dir, {"images": 0})
    reader.Reload()
    assert [event.step for event in reader.Images("egcam/panels")][-1] == 7
