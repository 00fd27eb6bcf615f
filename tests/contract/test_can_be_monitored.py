"""Values can be monitored: whoever does waits for the first, none is made up, and no fit ends for want of one."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from egcam_lightning import ExpectedGradCAMCallback
from egcam_lightning.metrics import Infidelity
from egcam_lightning.training.snapshotter import Snapshotter
from tests.support.faulty import Flaky, at, heard
from tests.support.fingerprints import fingerprint
from tests.support.fits import Net, fit, make_callback, train_loader
from tests.support.parallel import fit_in_two

EPOCHS = 4


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The weights of a fit that is not watched."""
    _, net = fit(tmp_path_factory.mktemp("alone"), max_epochs=EPOCHS)
    return fingerprint(net.state_dict())


class Halving(Net):
    """Its learning rate depends on a value of ours."""

    def __init__(self, monitor, **scheduler):
        super().__init__()
        self.scheduler = {"monitor": monitor, **scheduler}

    def training_step(self, batch, batch_idx):
        self.rates = [*getattr(self, "rates", []), self.trainer.optimizers[0].param_groups[0]["lr"]]
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)
        # Nothing improves by 100, so that every check behind the first halves the rate.
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=0.5, patience=0, threshold=100, threshold_mode="abs"
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, **self.scheduler}}


def stop(monitor, **kwargs):
    return EarlyStopping(monitor, patience=99, **kwargs)


def keep(monitor, **kwargs):
    return ModelCheckpoint(monitor=monitor, save_top_k=-1, **kwargs)


# What is monitored, with which arguments of the callback, and in which epochs it has a value for the first time.
LATE = {
    "every second epoch": ("infidelity", {"every_n_epochs": 2}, 1),
    "drift": ("drift/previous", {}, 1),
    "drift, every second epoch": ("drift/reference", {"every_n_epochs": 2}, 3),
    "no snapshot before": ("prediction_changed", {"log_at_start": False}, 1),
    "a snapshot that fails": ("infidelity", {"strict": False}, 1),
    "in time": ("infidelity", {}, 0),
}
# Who monitors it, and whether it is listed before the callback; ModelCheckpoint always comes last. Their defaults check
# at the end of the epoch.
WHO = {
    "EarlyStopping, behind": (stop, False),
    "EarlyStopping, ahead": (stop, True),
    "EarlyStopping of validation, behind": (lambda key: stop(key, check_on_train_epoch_end=False), False),
    "EarlyStopping of validation, ahead": (lambda key: stop(key, check_on_train_epoch_end=False), True),
    "ModelCheckpoint": (keep, True),
    "ModelCheckpoint of validation": (lambda key: keep(key, save_on_train_epoch_end=False), True),
    "ModelCheckpoint of steps": (lambda key: keep(key, every_n_train_steps=3, save_on_train_epoch_end=False), True),
}


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("what", LATE)
def test_whoever_monitors_waits_for_the_first_value_and_the_fit_goes_on(tmp_path, monkeypatch, weights, what, who):
    (key, arguments, first), (make, ahead) = LATE[what], WHO[who]
    if what == "a snapshot that fails":  # the first behind an epoch
        monkeypatch.setattr(
            Snapshotter, "take", Flaky(Snapshotter.take, torch.OutOfMemoryError("CUDA out of memory"), at(1))
        )
    callback, monitor = make_callback(metrics=("infidelity",), **arguments), make(f"egcam/{key}")
    order = [monitor, callback] if ahead else [callback, monitor]
    with heard():
        trainer, net = fit(tmp_path, *order, max_epochs=EPOCHS, enable_checkpointing=True)
    assert fingerprint(net.state_dict()) == weights
    values = {s.epoch: s.metrics[key] for s in callback.history if s.when == "epoch" and key in s.metrics}
    assert min(values) == first
    if isinstance(monitor, EarlyStopping):
        assert float(monitor.best_score) == pytest.approx(min(values.values()), rel=1e-5)
        assert monitor.strict
    else:
        scores = [float(score) for score in monitor.best_k_models.values()]
        assert scores
        assert all(any(score == pytest.approx(value, rel=1e-5) for value in values.values()) for score in scores)
        assert Path(monitor.best_model_path).is_file()
        assert monitor.save_top_k == -1
    with open(Path(trainer.logger.log_dir) / "metrics.csv") as file:
        logged = [float(row[f"egcam/{key}"]) for row in csv.DictReader(file) if row.get(f"egcam/{key}")]
    assert logged == pytest.approx([s.metrics[key] for s in callback.history if key in s.metrics], rel=1e-5)


@pytest.mark.parametrize("what", LATE)
def test_a_learning_rate_waits_too(tmp_path, monkeypatch, what):
    key, arguments, first = LATE[what]
    if what == "a snapshot that fails":
        monkeypatch.setattr(
            Snapshotter, "take", Flaky(Snapshotter.take, torch.OutOfMemoryError("CUDA out of memory"), at(1))
        )
    net = Halving(f"egcam/{key}")
    with heard():
        fit(tmp_path, make_callback(metrics=("infidelity",), **arguments), net=net, max_epochs=EPOCHS)
    rates = [0.05] * (first + 2) + [0.05 * 0.5**n for n in range(1, EPOCHS)]
    assert net.rates[::4] == rates[:EPOCHS]
    assert net.trainer.lr_scheduler_configs[0].strict


def test_without_validation_they_wait_as_well(tmp_path):
    monitors = stop("egcam/drift/previous", check_on_train_epoch_end=True), keep("egcam/drift/previous")
    callback = make_callback()
    with heard():
        trainer, _ = fit(tmp_path, *monitors, callback, limit_val_batches=0, max_epochs=3, enable_checkpointing=True)
    assert trainer.current_epoch == 3
    assert len(monitors[1].best_k_models) == 2


def test_where_no_value_ever_comes_the_fit_ends_as_ever_and_a_warning_has_said_so(tmp_path, monkeypatch, weights):
    monkeypatch.setattr(Snapshotter, "take", Flaky(Snapshotter.take, torch.OutOfMemoryError("CUDA"), lambda call: True))
    monitors = stop("egcam/infidelity"), keep("egcam/infidelity", save_last=True)
    callback = make_callback(strict=False, metrics=("infidelity",))
    with heard() as messages:
        _, net = fit(tmp_path, callback, *monitors, max_epochs=EPOCHS, enable_checkpointing=True)
    assert fingerprint(net.state_dict()) == weights
    told = [text for text in messages if "which has no value yet" in text]
    assert [text.split(" ")[0] for text in told] == ["EarlyStopping", "ModelCheckpoint"]
    assert monitors[1].best_k_models == {}
    assert Path(monitors[1].last_model_path).is_file()  # what needs no value is saved


@pytest.mark.parametrize("broken", [False, True], ids=["to the end", "broken off"])
def test_afterwards_all_is_as_the_user_made_it(tmp_path, broken):
    class Breaks(Net):
        def training_step(self, batch, batch_idx):
            if broken and batch_idx == 2:
                raise ArithmeticError("broken off")
            return super().training_step(batch, batch_idx)

    monitors = [stop("egcam/infidelity"), stop("egcam/drift/ssim", strict=False)]
    monitors += [ModelCheckpoint(monitor="egcam/infidelity", save_top_k=k, mode=m) for k, m in ((3, "min"), (0, "max"))]
    callback = make_callback(every_n_epochs=9, metrics=("infidelity",))
    try:
        fit(tmp_path, callback, *monitors, net=Breaks(), max_epochs=1, enable_checkpointing=True)
    except ArithmeticError:
        assert broken
    assert [monitor.strict for monitor in monitors[:2]] == [True, False]
    assert [monitor.save_top_k for monitor in monitors[2:]] == [3, 0]


@pytest.mark.parametrize("at_the_end", [True, False], ids=["end of epoch", "behind validation"])
@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_a_resumed_fit_stops_where_an_uninterrupted_one_does(tmp_path, epoch, at_the_end):
    """Epochs without a snapshot count as no improvement: also the first ones behind a resume."""

    def parts():
        stopping = EarlyStopping("egcam/infidelity", min_delta=1e9, patience=3, check_on_train_epoch_end=at_the_end)
        return make_callback(every_n_epochs=2, metrics=("infidelity",)), stopping

    every = ModelCheckpoint(tmp_path, filename="{epoch}", every_n_epochs=1, save_top_k=-1)
    kwargs = {"train": train_loader(shuffle=False), "max_epochs": 8, "enable_checkpointing": True}
    whole, _ = fit(tmp_path, *(one := parts()), every, **kwargs)
    again, _ = fit(tmp_path, *(two := parts()), ckpt_path=str(tmp_path / f"epoch={epoch}.ckpt"), **kwargs)
    assert one[1].stopped_epoch == 4  # a value in epoch 1, and then three checks without a better one
    assert two[1].stopped_epoch == 4
    assert again.current_epoch == whole.current_epoch
    keys = [key for key in whole.callback_metrics if key.startswith("egcam/") and "overhead" not in key]
    for key in keys:
        assert float(again.callback_metrics[key]) == pytest.approx(float(whole.callback_metrics[key]), rel=1e-5), key


def test_two_processes_wait_alike(tmp_path):
    monitors = stop("egcam/drift/previous"), keep("egcam/infidelity", dirpath=tmp_path / "checkpoints")
    callback = make_callback(every_n_epochs=2, metrics=("infidelity",))
    found = fit_in_two(tmp_path, callback, *monitors, max_epochs=EPOCHS, enable_checkpointing=True)
    assert [one.epoch for one in found] == [EPOCHS, EPOCHS]
    assert len(list((tmp_path / "checkpoints").glob("*.ckpt"))) == 3  # behind epochs 1, 2 and 3


# ---- what is said before the first step


def ready(callback, *monitors):
    """What ``setup`` says of these monitors."""
    callback.setup(SimpleNamespace(strategy=None, callbacks=[callback, *monitors]), Net(), "fit")


@pytest.mark.parametrize("who", [stop, keep])
@pytest.mark.parametrize(
    ("key", "arguments", "message"),
    [
        ("egcam/infidelty", {}, r"there is no such key. Write 'egcam/infidelity'; or, .* another `log_prefix`"),
        ("egcam/drift/previos", {}, r"no such key. Write 'egcam/drift/previous'"),
        ("egcam/max_sensitivity", {}, r"'max_sensitivity' is not taken. Write metrics=\('max_sensitivity',\), with"),
        ("egcam/infidelity", {"metrics": ()}, r"'infidelity' is not taken. Write metrics=\('infidelity',\)"),
        ("egcam/infidelity", {"metrics": {"coarse": Infidelity()}}, r"'infidelity' is not taken"),
        ("egcam/pointing_game", {}, r"needs masks of the objects. Write `masks_key`"),
        ("egcam/consensus_null", {}, r"needs masks of the objects. Write `masks_key`"),
        ("egcam/consensus_null", {"masks_key": 2, "metrics": ()}, r"'consensus' is not taken"),
        ("egcam/consensus", {"every_n_epochs": None}, r"every_n_epochs=None takes none. Write every_n_epochs=1"),
        (
            "egcam/drift/noise_floor",
            {"num_samples": 2},
            r"4 baselines an image, and there are 2. Write num_baselines=4",
        ),
    ],
)
def test_a_key_that_never_has_a_value_is_refused_with_what_to_write(who, key, arguments, message):
    with pytest.raises(
        MisconfigurationException, match=f"(EarlyStopping|ModelCheckpoint) monitors '{key}', but .*{message}"
    ):
        ready(ExpectedGradCAMCallback(**arguments), who(key))


def test_a_scheduler_is_refused_as_well(tmp_path):
    with pytest.raises(
        MisconfigurationException, match=r"ReduceLROnPlateau monitors 'egcam/infidelty', but .*'egcam/inf"
    ):
        fit(tmp_path, make_callback(metrics=("infidelity",)), net=Halving("egcam/infidelty"))


@pytest.mark.parametrize(
    ("key", "arguments"),
    [
        ("egcam/infidelity", {}),
        ("egcam/coarse", {"metrics": {"coarse": Infidelity()}}),
        ("egcam/relevance_mass", {"masks_key": 2}),
        ("egcam/not_finite", {}),
        ("egcam/overhead/drawing_seconds", {}),
        ("look/sparseness", {"log_prefix": "look"}),
        ("val_loss", {"metrics": ()}),
        (None, {}),
    ],
)
def test_a_key_that_can_have_a_value_is_not(key, arguments):
    with heard() as messages:
        ready(ExpectedGradCAMCallback(**arguments), SimpleNamespace(monitor=key))
    assert messages == []


def test_each_instance_answers_for_its_own_prefix():
    one, two = ExpectedGradCAMCallback(metrics=()), ExpectedGradCAMCallback(log_prefix="egcam/late")
    monitor = stop("egcam/late/infidelity")
    ready(one, two, monitor)
    ready(two, one, monitor)
    with pytest.raises(MisconfigurationException, match=r"'egcam/late/infidelty', but .*'egcam/late/infidelity'"):
        ready(two, one, stop("egcam/late/infidelty"))


def test_what_a_module_logs_under_the_same_prefix_is_its_own_affair(tmp_path):
    class Logs(Net):
        def validation_step(self, batch, batch_idx):
            self.log("val/loss", 1.0 / (1 + self.trainer.current_epoch))

    monitors = stop("val/loss"), keep("val/loss")
    with heard() as messages:
        fit(tmp_path, make_callback(log_prefix="val"), *monitors, net=Logs(), enable_checkpointing=True)
    told = [text for text in messages if "does not log" in text]
    assert len(told) == 2
    assert (
        "EarlyStopping monitors 'val/loss', which ExpectedGradCAMCallback does not log. Unless your module" in told[0]
    )
    assert float(monitors[0].best_score) == pytest.approx(0.5)
    assert len(monitors[1].best_k_models) == 2
    with pytest.raises(RuntimeError, match="which is not available"):  # and Lightning's word on it is the last
        fit(tmp_path, make_callback(log_prefix="val"), stop("val/nothing"))


@pytest.mark.parametrize(
    ("monitor", "arguments", "message"),
    [
        (stop("egcam/drift/previous"), {}, r"against an earlier snapshot\. .*Write EarlyStopping\(..., strict=False"),
        (stop("egcam/complexity"), {"every_n_epochs": 2}, r"every 2 epochs. .*Write EarlyStopping\(..., strict=Fa"),
        (keep("egcam/complexity"), {"every_n_epochs": 2}, r"Write ModelCheckpoint\(..., every_n_epochs=2\) to save"),
        (keep("egcam/drift/previous"), {}, r"waits for the first one. It saves nothing before"),
    ],
)
def test_a_value_that_comes_late_is_told_of_with_what_to_write(tmp_path, caplog, monitor, arguments, message):
    with caplog.at_level("INFO"), heard() as messages:
        callback = make_callback(metrics=("complexity",), **arguments)
        fit(tmp_path, callback, monitor, max_epochs=2, enable_checkpointing=True)
    told = [text for text in caplog.messages if "may have no value at the first check" in text]
    assert len(told) == 1
    assert re.search(message, told[0])
    assert [text for text in messages if "no value yet" in text] == []  # once is enough


def test_who_has_said_so_is_told_nothing(tmp_path, caplog):
    silent = stop("egcam/drift/previous", strict=False)
    with caplog.at_level("INFO"), heard() as messages:
        fit(tmp_path, make_callback(), silent, net=Halving("egcam/drift/previous", strict=False))
    assert [text for text in (*caplog.messages, *messages) if "waits" in text or "no value yet" in text] == []


def test_no_value_is_ever_made_up(tmp_path):
    """What the Trainer knows at any check is of a snapshot behind an epoch, and finite."""
    seen = []

    class Looks(EarlyStopping):
        def _run_early_stopping_check(self, trainer):
            seen.append({key: float(value) for key, value in trainer.callback_metrics.items() if "egcam" in key})
            super()._run_early_stopping_check(trainer)

    callback = make_callback(every_n_epochs=2, metrics=("infidelity",))
    fit(tmp_path, callback, Looks("egcam/infidelity", patience=99), max_epochs=EPOCHS)
    assert [len(values) > 0 for values in seen] == [False, True, True, True]
    for values, snapshot in zip(seen[1:], [callback.history[1]] * 2 + [callback.history[2]], strict=True):
        assert all(math.isfinite(value) for value in values.values())
        assert values["egcam/infidelity"] == pytest.approx(snapshot.metrics["infidelity"], rel=1e-5)


def test_a_checkpoint_that_has_waited_in_vain_is_told_of_at_the_end(tmp_path):
    waits = ModelCheckpoint(tmp_path / "kept", monitor="egcam/drift/previous")
    with pytest.warns(
        UserWarning, match=r"'egcam/drift/previous', which never had a value, and has saved no checkpoint"
    ):
        fit(tmp_path, make_callback(log_at_start=False), waits, max_epochs=1, enable_checkpointing=True)
    assert waits.save_top_k == 1
    assert not list((tmp_path / "kept").glob("*"))


def test_missing_labels_are_told_of(tmp_path, caplog):
    loader = train_loader(collate_fn=lambda samples: {"x": torch.stack([x for x, _ in samples])})

    class Unlabelled(Net):
        def training_step(self, batch, batch_idx):
            return self(batch["x"]).square().mean()

        def validation_step(self, batch, batch_idx):
            self(batch["x"])

    with caplog.at_level("INFO"):
        fit(tmp_path, make_callback(), net=Unlabelled(), train=loader, val=loader, max_epochs=1)
    assert "No labels were found in the batches" in caplog.text
