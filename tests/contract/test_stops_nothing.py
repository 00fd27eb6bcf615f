"""It stops nothing: whatever fails in the callback, training ends as if nothing had happened."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torchmetrics import Metric

import egcam_lightning.pictures.draw
import egcam_lightning.report
import egcam_lightning.sinks.publisher
import egcam_lightning.training.session
from egcam_lightning import ExpectedGradCAM, History
from egcam_lightning.data.probe import Probe
from egcam_lightning.explain import module_state as state
from egcam_lightning.history.folder import RunFolder
from egcam_lightning.sinks import register_sink
from egcam_lightning.training.snapshotter import Snapshotter
from tests.support import faulty
from tests.support.faulty import Flaky, at, complaints, full_disk, heard, read_only
from tests.support.fingerprints import fingerprint
from tests.support.fits import Net, fit, make_callback, make_trainer, train_loader, val_loader
from tests.support.pictures import squares

EPOCHS = 3
OOM = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The weights of a run that the callback has no part in."""
    _, net = fit(tmp_path_factory.mktemp("alone"), max_epochs=EPOCHS)
    return fingerprint(net.state_dict())


def watched(tmp_path, *, strict=False, callbacks=(), arguments=None, epochs=EPOCHS, **kwargs):
    """A fit with the callback; its callback, weights, and what was said."""
    callback = make_callback(strict=strict, save_dir=str(tmp_path / "files"), **(arguments or {}))
    before, after = callbacks or ((), ())
    with heard() as messages:
        _, net = fit(tmp_path, *before, callback, *after, max_epochs=epochs, **kwargs)
    return callback, fingerprint(net.state_dict()), messages


class BrokenSink:
    """Shows nothing, at the first snapshots."""

    errors: ClassVar[list[Exception]] = []

    def __init__(self, logger, run_dir, prefix):
        pass

    def log_snapshot(self, snapshot, history, pictures):
        if self.errors:
            raise self.errors.pop()

    def log_page(self, path):
        pass


register_sink(faulty.PictureLogger)(BrokenSink)


# What to break, the words that tell of it, its error, and how many of the snapshots (at the start and after each of
# three epochs) there are in the end.
BREAKS = {
    "an out-of-memory error in the explanation": (
        [(ExpectedGradCAM, "__call__", OOM, at(1))], "the snapshot failed.*OutOfMemoryError: CUDA out of memory", 3,
    ),
    "an out-of-memory error in the first look": (
        [(ExpectedGradCAM, "logits", OOM, at(0))], "first look at the model failed.*OutOfMemoryError: CUDA", 3,
    ),
    "an error in the backward pass": (
        [(torch.autograd, "grad", RuntimeError("cuDNN error"), at(0))], "first look.*failed.*cuDNN error", 3,
    ),
    "a look that fails": ([(Snapshotter, "take", KeyError("layer"), at(2))], "snapshot failed.*KeyError: 'layer'", 3),
    "a probe that does not fit into memory": ([(Probe, "inputs", OOM, at(1))], "the snapshot failed.*OutOfMemory", 3),
    "a full disk": ([(RunFolder, "append", full_disk(), at(1, 2))], "writing the history failed.*No space left", 4),
    "a folder that cannot be made": (
        [(RunFolder, "open", read_only(), at(0, 1))], "writing the history failed.*Read-only file system", 4,
    ),
    "pictures that cannot be drawn": (
        [(egcam_lightning.pictures.draw, "draw", ValueError("no colour"), at(0))],
        "drawing the pictures failed.*no colour", 4,
    ),
    "a page that cannot be built": (
        [(egcam_lightning.report, "build_report", MemoryError("the page"), at(0))], "building the page failed.*page", 4,
    ),
    "a logger that does not know its folder": (
        [(egcam_lightning.training.run_directory, "run_directory", ConnectionError("not logged in"), at(0, 1))],
        "finding where files go failed.*ConnectionError: not logged in", 4,
    ),
    "sinks that cannot be made": (
        [(egcam_lightning.sinks.publisher, "find_sinks", ImportError("no wandb"), at(0))],
        "finding where pictures go failed.*no wandb", 4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BREAKS)
def test_a_fault_is_told_of_once_and_training_goes_on_and_the_next_snapshot_works(
    tmp_path, monkeypatch, expected, what
):
    breaks, words, count = BREAKS[what]
    for owner, name, error, broken in breaks:
        flaky = Flaky(getattr(owner, name), error, broken)
        monkeypatch.setattr(owner, name, flaky)
    callback, weights, messages = watched(tmp_path)
    assert flaky.failures > 0
    assert weights == expected
    told = complaints(messages)
    assert len(told) == 1
    assert re.search(words, told[0], re.DOTALL), told[0]
    assert len(callback.history) == count
    assert callback.history[-1].epoch == EPOCHS - 1
    assert [s.key for s in History.load(callback.run_dir)] == [s.key for s in callback.history]


@pytest.mark.parametrize("what", BREAKS)
def test_strict_raises_it_instead(tmp_path, monkeypatch, what):
    for owner, name, error, broken in BREAKS[what][0]:
        monkeypatch.setattr(owner, name, Flaky(getattr(owner, name), error, broken))
    with pytest.raises(type(error)) as caught:
        watched(tmp_path, strict=True)
    assert caught.value is error


@pytest.mark.parametrize(("epoch", "task"), [(None, "reading images to explain"), (1, "the snapshot")])
def test_a_buffer_that_does_not_fit_into_memory_twice_costs_snapshots_alone(
    tmp_path, monkeypatch, expected, epoch, task
):
    class Clock(Callback):
        now = None

        def on_train_epoch_start(self, trainer, pl_module):
            self.now = trainer.current_epoch

    def copy_of(piece):
        if clock.now == epoch:
            raise OOM
        return original(piece)

    clock, original = Clock(), state._copy_of
    monkeypatch.setattr(state, "_copy_of", copy_of)
    callback, weights, messages = watched(tmp_path, callbacks=([clock], []))
    assert weights == expected
    told = complaints(messages)
    assert len(told) == 1
    assert re.search(f"{task} failed, and training goes on. OutOfMemoryError", told[0])
    assert len(callback.history) == 3


@pytest.mark.parametrize("error", [RuntimeError("the service is down"), ConnectionResetError("peer hung up")], ids=repr)
def test_a_logger_that_raises_or_hangs_up_is_told_of_once(tmp_path, monkeypatch, expected, error):
    logger = faulty.PickyLogger(tmp_path)
    logger.error = error
    callback, weights, messages = watched(tmp_path, logger=logger, arguments={"every_n_train_steps": 3})
    assert weights == expected
    assert [text for text in complaints(messages) if str(error) in text] == complaints(messages)
    assert len(complaints(messages)) == 1
    assert [s.when for s in callback.history].count("step") == 3
    with pytest.raises(type(error), match=str(error)):
        watched(tmp_path, strict=True, logger=logger)


def test_one_logger_that_fails_does_not_silence_the_others(tmp_path):
    good = CSVLogger(tmp_path, name="good")
    watched(tmp_path, logger=[faulty.PickyLogger(tmp_path, name="bad"), good])
    assert "egcam/completeness_gap" in (Path(good.log_dir) / "metrics.csv").read_text().splitlines()[0]
    assert len((Path(good.log_dir) / "metrics.csv").read_text().splitlines()) >= 2 + EPOCHS


def test_a_logger_that_answers_with_none_is_no_fault(tmp_path, expected):
    callback, weights, messages = watched(tmp_path, logger=faulty.SilentLogger())
    assert weights == expected
    assert complaints(messages) == []
    assert len(callback.history) == 1 + EPOCHS
    assert len(list(callback.run_dir.glob("panels/*.png"))) == 1 + EPOCHS


def test_pictures_that_a_logger_does_not_take_are_told_of_once_of_each_kind(tmp_path, expected):
    BrokenSink.errors = [BrokenPipeError("hung up"), RuntimeError("full"), BrokenPipeError("hung up")]
    callback, weights, messages = watched(tmp_path, logger=faulty.PictureLogger(tmp_path))
    assert BrokenSink.errors == []
    assert weights == expected
    kinds = [text.rsplit(". ", 1)[1] for text in complaints(messages)]
    assert kinds == ["BrokenPipeError: hung up", "RuntimeError: full"]
    assert len(callback.history) == 1 + EPOCHS


def test_after_a_full_disk_the_history_on_disk_is_whole_again(tmp_path, monkeypatch, expected):
    """Every write below the run folder fails for two snapshots, wherever it is made."""
    trouble = {"now": False}

    def look(self, *args, **kwargs):
        trouble["now"] = bool(args[3].epoch == 1) or args[3].kind == "start"
        return original(self, *args, **kwargs)

    original = Snapshotter.take
    monkeypatch.setattr(Snapshotter, "take", look)
    monkeypatch.setattr(
        Path,
        "write_bytes",
        faulty.in_folder(Path.write_bytes, tmp_path / "files", full_disk(), lambda: trouble["now"]),
    )
    callback, weights, messages = watched(tmp_path)
    assert weights == expected
    assert {text.split(" failed")[0].split(": ")[1] for text in complaints(messages)} >= {"writing the history"}
    assert all("No space left" in text for text in complaints(messages))
    assert len(complaints(messages)) == len(set(complaints(messages)))
    assert len(callback.history) == 1 + EPOCHS
    assert [s.key for s in History.load(callback.run_dir)] == [s.key for s in callback.history]


def test_a_folder_that_is_a_file_stops_nothing(tmp_path, expected):
    (tmp_path / "files").write_text("in the way")
    callback, weights, messages = watched(tmp_path)
    assert weights == expected
    assert all(re.search("NotADirectoryError|FileExistsError", text) for text in complaints(messages))
    assert len(complaints(messages)) >= 1
    assert len(callback.history) == 1 + EPOCHS


@pytest.mark.parametrize("where", ["update", "compute", "reset"])
def test_a_metric_that_fails_is_left_out_and_the_others_are_logged(tmp_path, expected, where):
    metrics = (faulty.BrokenMetric(where), "complexity")
    callback, weights, messages = watched(tmp_path, arguments={"metrics": metrics})
    assert weights == expected
    assert len(complaints(messages)) == 1
    assert (
        f"the metric 'broken_metric' failed, and training goes on. ArithmeticError: no {where}"
        in complaints(messages)[0]
    )
    assert len(callback.history) == 1 + EPOCHS
    assert all("complexity" in s.metrics for s in callback.history)
    if where != "reset":
        assert all("broken_metric" not in s.metrics for s in callback.history)
    with pytest.raises(ArithmeticError, match=f"no {where}"):
        watched(tmp_path, strict=True, arguments={"metrics": (faulty.BrokenMetric(where),)})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_model_that_is_sick_for_a_while_is_told_of_once_and_recovers(tmp_path, value):
    def sick(*epochs):
        seed_everything(0, verbose=False)
        return faulty.SickNet(value, epochs)

    _, net = fit(tmp_path, net=sick(), max_epochs=4)
    callback, weights, messages = watched(tmp_path, arguments={"metrics": "default"}, net=sick(1, 2), epochs=4)
    assert weights == fingerprint(net.state_dict())
    assert len(complaints(messages)) == 1
    assert re.match(r"The model gives NaN or infinity: 100% .* not finite", complaints(messages)[0])
    assert [("not_finite" in s.metrics) for s in callback.history] == [False, False, True, True, False]
    assert all(math.isfinite(v) for s in callback.history for v in s.metrics.values())
    assert {"infidelity", "completeness_gap", "insertion_auc"} <= callback.history[-1].metrics.keys()
    assert [s.key for s in History.load(callback.run_dir)] == [s.key for s in callback.history]
    with pytest.raises(FloatingPointError, match="NaN or infinity"):
        watched(tmp_path, strict=True, net=sick(1))


def test_data_that_cannot_be_read_at_the_start_are_waited_for(tmp_path, expected):
    """Both data sets fail while the callback chooses images; the loaders' own reading works."""
    train, val = faulty.Outage(squares(32)), faulty.Outage(squares(16, seed=1))
    callback, weights, messages = watched(
        tmp_path,
        train=train_loader(train),
        val=val_loader(val),
        callbacks=([faulty.Switch(True, [train, val])], [faulty.Switch(False, [train, val])]),
    )
    assert weights == expected
    told = complaints(messages)
    assert len(told) == 2
    assert any("reading images to explain failed" in text for text in told)
    assert any("reading training images failed" in text for text in told)
    assert all("FileNotFoundError: the network drive is gone" in text for text in told)
    assert [s.epoch for s in callback.history] == list(range(EPOCHS))
    assert torch.equal(callback.history.probe.labels, squares(16, seed=1).tensors[1][:4])
    with pytest.raises(FileNotFoundError):
        watched(
            tmp_path, strict=True, train=train_loader(train), val=val_loader(val),
            callbacks=([faulty.Switch(True, [train, val])], [faulty.Switch(False, [train, val])]),
        )  # fmt: skip


def test_a_validation_loader_that_disappears_leaves_the_snapshots_to_the_end_of_the_epoch(tmp_path):
    class Vanishing(Net):
        def train_dataloader(self):
            return train_loader()

        def val_dataloader(self):
            return val_loader() if self.trainer.current_epoch < 1 else []

    def run(*callbacks):
        seed_everything(0, verbose=False)
        net = Vanishing()
        trainer = make_trainer(tmp_path, *callbacks, max_epochs=EPOCHS, reload_dataloaders_every_n_epochs=1)
        trainer.fit(net)
        return fingerprint(net.state_dict())

    callback = make_callback(strict=True)
    assert run(callback) == run()
    assert [(s.epoch, s.when) for s in callback.history] == [(0, "start"), *((n, "epoch") for n in range(EPOCHS))]


class Anything(Metric):
    """A metric that works, until it is broken."""

    def __init__(self):
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, attribution):
        self.total += attribution.abs().sum()

    def compute(self):
        return self.total


class Picky(Net):
    """Fails on some of the callback's values, and takes its own."""

    def may_hang_up(self):
        pass

    def log(self, name, *args, **kwargs):
        if name == "egcam/completeness_gap":
            self.may_hang_up()
        super().log(name, *args, **kwargs)


def test_faults_at_random_over_a_long_run_are_told_of_once_of_each_kind(tmp_path, monkeypatch):
    epochs = 30
    seed_everything(0, verbose=False)
    _, net = fit(tmp_path, net=Picky(), max_epochs=epochs)
    places = [
        (Snapshotter, "take", OOM),
        (Anything, "compute", ZeroDivisionError("no images")),
        (RunFolder, "append", full_disk()),
        (RunFolder, "open", read_only()),
        (egcam_lightning.pictures.draw, "draw", ValueError("no colour")),
        (egcam_lightning.report, "build_report", MemoryError("the page")),
        (Picky, "may_hang_up", ConnectionError("hung up")),
    ]
    flaky = [
        # The page is built at growing intervals, so there are few occasions for it to fail.
        Flaky(getattr(owner, name), error, at(0) if name == "build_report" else faulty.sometimes(seed))
        for seed, (owner, name, error) in enumerate(places)
    ]
    for (owner, name, _), wrapped in zip(places, flaky, strict=True):
        monkeypatch.setattr(owner, name, wrapped)
    seed_everything(0, verbose=False)
    arguments = {"metrics": (Anything(),), "every_n_train_steps": 3}
    callback, weights, messages = watched(tmp_path, epochs=epochs, net=Picky(), arguments=arguments)
    assert weights == fingerprint(net.state_dict())
    assert all(wrapped.failures for wrapped in flaky)
    told = complaints(messages)
    assert len(told) == len(set(told)) == len(places)
    for _, _, error in places:
        assert sum(f"{type(error).__name__}: {error}" in text for text in told) == 1
    # Each look that did not fail is in the history: 1 before training, 30 after epochs, and 30 or so between.
    assert len(callback.history) == flaky[0].calls - flaky[0].failures
    assert 2 <= flaky[0].failures < flaky[0].calls
    monkeypatch.undo()
    written = [s.key for s in History.load(callback.run_dir)]
    assert written == [s.key for s in callback.history][: len(written)]
