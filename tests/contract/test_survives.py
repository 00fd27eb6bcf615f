"""It survives: a run that is killed goes on as the run that never was."""

from __future__ import annotations

import copy
import csv
import io
import json
import random
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

import egcam_lightning.history.folder
from egcam_lightning import History
from tests.support.faulty import heard
from tests.support.fingerprints import fingerprint, memory_of
from tests.support.fits import Net, fit, make_callback, train_loader, val_loader
from tests.support.killed import CallCounter, Resumable, in_child, kill_me
from tests.support.pictures import squares

EPOCHS = 3
METRICS = ("infidelity", "complexity", "consensus")


def watched(folder, *, every=None, ckpt_path=None, epochs=EPOCHS, callback=None, net=None, **arguments):
    """A fit of three epochs of four steps, with a snapshot after every epoch and every third step."""
    checkpoint = ModelCheckpoint(
        folder / "checkpoints", save_last=True, save_top_k=-1, every_n_train_steps=every, filename="{epoch}-{step}"
    )
    defaults = {"metrics": METRICS, "every_n_train_steps": 3, "save_dir": str(folder / "files")}
    callback = callback or make_callback(**{**defaults, **arguments})
    seed_everything(0, verbose=False)
    fit(
        folder, callback, checkpoint, net=net or Net(), train=Resumable(squares(32), 8), max_epochs=epochs,
        enable_checkpointing=True, ckpt_path=ckpt_path, logger=CSVLogger(folder / "logs", name=""),
    )  # fmt: skip
    return callback


def logged(folder):
    """The callback's values that were logged, by step, as Lightning keeps them (float32), but for those of time."""
    rows = {}
    for path in sorted((folder / "logs").glob("version_*/metrics.csv"), key=lambda path: int(path.parent.name[8:])):
        with open(path) as file:
            for row in csv.DictReader(file):
                values = {key: float(np.float32(value)) for key, value in row.items() if value and _timeless(key)}
                rows.setdefault(int(row["step"]), {}).update(values)
    return rows


def _timeless(key):
    return key.startswith("egcam/") and "overhead" not in key


def run_dir(folder):
    """The last run's folder: one that was killed before its first checkpoint is never overwritten by the next."""
    versions = sorted((folder / "files").glob("version_*"), key=lambda path: int(path.name[8:]))
    return (versions[-1] if versions else folder / "files") / "egcam"


def lines(folder):
    """The header, but for what no two runs have in common, and the lines of the history."""
    header, *rest = map(json.loads, (run_dir(folder) / "history.jsonl").read_text().splitlines())
    assert header.pop("run")
    return [header, *rest]


def pictures(folder):
    return {path.name: path.read_bytes() for path in (run_dir(folder) / "panels").glob("*.png")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that was never killed, and how many calls it made."""
    folder = tmp_path_factory.mktemp("whole")

    def run():
        with CallCounter() as counter:
            watched(folder)
        (folder / "calls").write_text(str(counter.count))

    assert in_child(run) == 0
    return folder, int((folder / "calls").read_text())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.cpu("it is killed in a forked process")
def test_killed_at_a_random_moment_and_resumed_a_run_logs_what_it_would_have(tmp_path, whole, seed):
    """By SIGKILL, at any call of the package; checkpoints after every epoch, every step, every third step."""
    folder, calls = whole
    every = (None, 1, 3)[seed % 3]
    deadly = random.Random(seed).randrange(calls // 10, calls)

    def run():
        with CallCounter(deadly):
            watched(tmp_path, every=every)

    assert in_child(run) == signal.SIGKILL
    assert_whole(tmp_path / "files")
    had = (tmp_path / "checkpoints" / "last.ckpt").exists()
    if had:
        state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
        (tmp_path / "checkpoint_step").write_text(str(state["global_step"]))
    assert in_child(lambda: watched(tmp_path, every=every, ckpt_path="last" if had else None)) == 0
    assert lines(tmp_path) == lines(folder)  # each entry once, and each value exactly
    assert pictures(tmp_path) == pictures(folder)
    for one, other in zip(*(History.load(run_dir(where)) for where in (tmp_path, folder)), strict=True):
        assert torch.equal(one.attribution, other.attribution)
    # A process that is killed takes with it what its logger had not written; all else is there, and the same.
    resumed, expected = logged(tmp_path), logged(folder)
    assert all(values.items() <= expected[step].items() for step, values in resumed.items())
    done = json.loads((tmp_path / "checkpoint_step").read_text()) if had else -1
    assert all(resumed[step] == values for step, values in expected.items() if step >= done)


def assert_whole(folder):
    """Whatever is there is whole: history, maps, pictures and page."""
    for history in folder.rglob("history.jsonl"):
        History.load(history.parent)
    for path in folder.rglob("panels/*.png"):
        Image.open(path).load()
    for page in folder.rglob("report.html"):
        assert page.read_text().rstrip().endswith("</html>")


@pytest.mark.parametrize("every", [2, 3, 5])
@pytest.mark.cpu("it is killed in a forked process")
def test_checkpoints_within_an_epoch_resume_exactly(tmp_path, whole, every):
    """From each of them, the ones within the first epoch too, when the sample of baselines is not complete."""
    folder, _ = whole
    watched(tmp_path, every=every)
    expected = lines(folder)
    paths = sorted((tmp_path / "checkpoints").glob("epoch=*.ckpt"), key=lambda path: int(path.stem.split("step=")[1]))
    assert len(paths) == 12 // every
    for path in paths[:3]:
        again = tmp_path / path.stem
        callback = watched(again, ckpt_path=str(path))
        assert [s.key for s in callback.history] == [
            (line["epoch"], line["step"], line["when"]) for line in expected[1:]
        ]
        assert lines(again)[1:] == expected[1:]
        later = {name: content for name, content in pictures(folder).items() if name in pictures(again)}
        assert later
        assert later == pictures(again)


def test_the_state_is_plain_and_loads_with_weights_only(tmp_path):
    callback = watched(tmp_path)
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    (key,) = (key for key in checkpoint["callbacks"] if "ExpectedGradCAM" in key)

    def check(value):
        assert type(value) in (torch.Tensor, int, float, str, bool, type(None), dict, list, tuple), type(value)
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
            check(item)

    check(checkpoint["callbacks"][key])
    assert len(checkpoint["callbacks"][key]["snapshots"]) == len(callback.history)


# ---- states that do not fit


def resumed_with(tmp_path, change, **arguments):
    """A fit resumed from a checkpoint whose state was changed; what was said."""
    watched(tmp_path, epochs=1)
    path = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    (key,) = (key for key in checkpoint["callbacks"] if "ExpectedGradCAM" in key)
    change(checkpoint["callbacks"][key])
    torch.save(checkpoint, path)
    with heard() as messages:
        callback = watched(tmp_path / "again", ckpt_path=str(path), epochs=2, **arguments)
    return callback, [text for text in messages if "starts afresh" in text]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.update(version=0), r"in version 0 of the format.*reads versions 1 to 3"),
        (lambda state: state.update(version=99), r"in version 99 of the format"),
        (lambda state: state.pop("version"), r"in version None of the format"),
        (lambda state: state.pop("schedule"), r"cannot be read \(KeyError: 'schedule'\)"),
        (lambda state: state["snapshots"][0].pop("maps"), r"cannot be read \(ValueError: .*maps"),
        (lambda state: state["baselines"].pop("generation"), r"cannot be read \(KeyError: 'generation'\)"),
        (lambda state: state["probe"].pop("images"), r"cannot be read \(KeyError: 'images'\)"),
    ],
)
def test_a_state_that_cannot_be_read_is_told_of_and_the_run_starts_afresh(tmp_path, change, words):
    callback, messages = resumed_with(tmp_path, change)
    assert len(messages) == 1
    assert re.search(words, messages[0])
    assert "training is not affected" in messages[0]
    assert [s.epoch for s in callback.history] == [1] * len(callback.history)
    assert len(callback.history) >= 1


class Other(Net):
    """Another architecture with the same weights, but for a layer: a grid twice as fine."""

    def __init__(self):
        super().__init__()
        self.features[3] = nn.Identity()
        self.head[1] = nn.AvgPool2d(8)


def test_a_state_of_another_architecture_is_told_of_and_the_run_starts_afresh(tmp_path):
    watched(tmp_path, epochs=1, target_layer="last")
    with heard() as messages:
        callback = watched(
            tmp_path / "again",
            ckpt_path=str(tmp_path / "checkpoints" / "last.ckpt"),
            epochs=2,
            net=Other(),
            target_layer="last",
        )
    told = [text for text in messages if "starts afresh" in text]
    assert len(told) == 1
    assert "the architecture has changed" in told[0]
    assert "(4, 8, 8)" in told[0]
    assert "(4, 16, 16)" in told[0]
    assert {s.epoch for s in callback.history} == {1}


def test_a_state_of_images_of_another_shape_is_told_of_and_the_run_starts_afresh(tmp_path):
    watched(tmp_path, epochs=1)
    with heard() as messages:
        callback = make_callback(save_dir=str(tmp_path / "again"))
        seed_everything(0, verbose=False)

        class Wide(Net):
            def forward(self, x):
                return super().forward(x[..., :16, :16])

        fit(
            tmp_path / "again", callback, net=Wide(), train=train_loader(squares(32, size=24)),
            val=val_loader(squares(16, seed=1, size=24)), ckpt_path=str(tmp_path / "checkpoints" / "last.ckpt"),
        )  # fmt: skip
    told = [text for text in messages if "starts afresh" in text]
    assert len(told) == 1
    assert "(3, 16, 16)" in told[0]
    assert "(3, 24, 24)" in told[0]
    assert {s.epoch for s in callback.history} == {1}
    assert callback.history.probe.images.shape[1:3] == (24, 24)


def parts(state, path=()):
    """Every part of a state that can be damaged: the way to it, and what is there."""
    for key, value in state.items() if isinstance(state, dict) else enumerate(state):
        yield (*path, key), value
        if isinstance(value, (dict, list)) and "metrics" not in path:
            yield from parts(value, (*path, key))


def damages(value):
    """What cannot stand for ``value``."""
    yield object()
    if isinstance(value, torch.Tensor) and value.ndim:
        yield value[:-1]
        if value.dtype != torch.uint8:  # a generator's state is the same in any shape
            yield value[None, None, None]
    if not isinstance(value, str):
        yield "a text"
    if value is not None:
        yield None


MAY_BE_NONE = {
    *(("probe",), ("owed",), ("baselines", "chosen"), ("baselines", "reservoir")),
    *(("probe", name) for name in ("labels", "masks", "targets")),
}


def test_a_state_is_taken_whole_or_not_at_all(tmp_path):
    """Each part of it in turn is missing, of another type, or cut short."""
    watched(tmp_path, every=2, epochs=2, metrics=("complexity",))
    tried, fresh = 0, loaded(None)[1]
    for name in ("epoch=0-step=2", "epoch=1-step=6"):  # before the sample of baselines is complete, and after it
        checkpoint = torch.load(tmp_path / "checkpoints" / f"{name}.ckpt", weights_only=True)
        (intact,) = (state for key, state in checkpoint["callbacks"].items() if "ExpectedGradCAM" in key)
        intact["baselines"]["world"] = 3  # as of no other fit here
        assert loaded(intact)[0] == []
        for path, value in parts(intact):
            if path[0] == "snapshots" and path[1:2] > (0,):
                continue  # one of them stands for all
            for damage in damages(value):
                if damage is None and path in MAY_BE_NONE:
                    continue
                if path == ("baselines", "chosen") and getattr(damage, "ndim", 0) == 4:
                    continue  # there may have been fewer training images
                state = copy.deepcopy(intact)
                at(state, path[:-1])[path[-1]] = damage
                told, kept = loaded(state)
                assert len(told) == 1, (path, damage)
                assert kept == fresh, (path, damage)
                tried += 1
            if isinstance(at(intact, path[:-1]), dict) and "metrics" not in path[:-1]:
                state = copy.deepcopy(intact)
                del at(state, path[:-1])[path[-1]]
                told, kept = loaded(state)
                assert len(told) == 1, path
                assert kept == fresh, path
    assert tried > 100


def at(state, path):
    for key in path:
        state = state[key]
    return state


def loaded(state):
    """What is said when a state is loaded, and what the callback then goes on from, but for the run's name."""
    callback = make_callback()
    with heard() as messages:
        if state is not None:
            callback.load_state_dict(state)
    afresh = [text for text in messages if "starts afresh" in text]
    return afresh, fingerprint({**callback.state_dict(), "run": None})


# ---- files


@pytest.mark.parametrize("name", ["history.jsonl", "probe.npz", "maps", "panels", "report.html"])
@pytest.mark.cpu("it is killed in a forked process")
def test_killed_while_writing_a_file_nothing_is_half_written(tmp_path, whole, monkeypatch, name):
    """Half of the second content that a file gets reaches the disk, and then the process is killed."""
    original, seen = Path.write_bytes, []

    def half(path, data):
        if name in str(path):
            seen.append(path)
            if len(seen) == (1 if name in ("probe.npz", "history.jsonl") else 2):
                original(path, data[: len(data) // 2])
                kill_me()
        return original(path, data)

    monkeypatch.setattr(Path, "write_bytes", half)
    monkeypatch.setattr("egcam_lightning.sinks.publisher._PAGE_SECONDS", 0.0)
    assert in_child(lambda: watched(tmp_path, every=1)) == signal.SIGKILL
    monkeypatch.undo()
    assert_whole(tmp_path / "files")
    had = (tmp_path / "checkpoints" / "last.ckpt").exists()
    watched(tmp_path, every=1, ckpt_path="last" if had else None)
    assert lines(tmp_path) == lines(whole[0])
    assert_whole(tmp_path / "files")


@pytest.mark.cpu("it is killed in a forked process")
def test_killed_while_appending_a_line_the_history_is_read_without_it_and_goes_on(tmp_path, whole, monkeypatch):
    class Torn(io.FileIO):
        def write(self, data):
            super().write(bytes(data)[: len(data) // 2])
            kill_me()

    calls = []

    def torn_open(path, mode="r", **kwargs):
        if mode == "r+b":
            calls.append(path)
            if len(calls) == 3:
                return Torn(path, "r+")
        return open(path, mode, **kwargs)

    monkeypatch.setattr(egcam_lightning.history.folder, "open", torn_open, raising=False)
    assert in_child(lambda: watched(tmp_path, every=1)) == signal.SIGKILL
    monkeypatch.undo()
    assert len(History.load(tmp_path / "files" / "egcam")) == 2
    watched(tmp_path, every=1, ckpt_path="last")
    assert lines(tmp_path) == lines(whole[0])


# ---- size


class SevenBySeven(Net):
    """A target layer with a grid of 7 x 7."""

    def __init__(self):
        super().__init__()
        self.features[3] = nn.AdaptiveMaxPool2d(7)
        self.head[1] = nn.AdaptiveAvgPool2d(2)


def test_checkpoints_grow_by_the_images_and_at_most_4_kb_a_snapshot(tmp_path):
    def size(epochs):
        callback = make_callback(
            num_images=16, num_baselines=32, metrics="default", target_layer="last", audit_images=0
        )
        fit(tmp_path, callback, net=SevenBySeven(), max_epochs=epochs)
        assert callback.history[-1].attribution.shape == (16, 7, 7)
        buffer = io.BytesIO()
        torch.save(callback.state_dict(), buffer)
        return buffer.tell()

    small, large = size(4), size(24)
    assert (large - small) / 20 <= 4096
    pixels = 3 * 16 * 16 * 2  # of an image in half precision
    assert small <= (16 + 32) * pixels + 5 * 4096 + 4096


class Fine(Net):
    """Takes images of 64 x 64; its first layer's grid is as fine."""

    def __init__(self):
        super().__init__()
        self.head[1] = nn.AvgPool2d(16)


def fine(folder, **kwargs):
    callback = make_callback(target_layer="features.0", metrics=("complexity",), save_dir=str(folder / "files"))
    checkpoint = ModelCheckpoint(folder / "checkpoints", filename="{epoch}", save_top_k=-1)
    with heard() as messages:
        fit(
            folder, callback, checkpoint, net=Fine(), train=Resumable(squares(16, size=64), 8),
            val=val_loader(squares(4, size=64)), enable_checkpointing=True, **kwargs,
        )  # fmt: skip
    return callback, [text for text in messages if "averages over few cells" in text]


@pytest.mark.parametrize("where", ["in place", "elsewhere", "where the files are not to be found"])
def test_maps_that_a_checkpoint_does_not_hold_are_found_and_drift_goes_on_exactly(tmp_path, where):
    whole, _ = fine(tmp_path, max_epochs=6)
    expected = list(whole.history)
    assert {s.attribution.shape for s in expected} == {(4, 64, 64)}
    path = tmp_path / "checkpoints" / "epoch=3.ckpt"
    state = torch.load(path, weights_only=True)["callbacks"][whole.state_key]
    held = [one["maps"][0].numel() for one in state["snapshots"]]
    assert held == [64, 4096, 64, 64, 4096]  # whole of the reference and of the last one
    if where == "where the files are not to be found":
        (tmp_path / "files").rename(tmp_path / "moved")
    resumed, told = fine(tmp_path if where == "in place" else tmp_path / "again", max_epochs=6, ckpt_path=str(path))
    folders = [resumed.run_dir] if where == "in place" else [resumed.run_dir, whole.run_dir]
    assert resumed.state_dict()["folders"] == [str(folder) for folder in folders]
    lost = [0, 2, 3] if where == "where the files are not to be found" else []
    assert len(told) == bool(lost)
    read = History.load(resumed.run_dir)
    assert len(read) == len(expected) == 7
    for index, then in enumerate(expected):
        for now in (resumed.history[index], read[index]):
            timeless = [{k: v for k, v in s.metrics.items() if "overhead" not in k} for s in (now, then)]
            assert timeless[0] == timeless[1]
            if index in lost:
                assert now.attribution.shape == (4, 8, 8)
            else:
                assert torch.equal(now.attribution, then.attribution)
    assert (resumed.run_dir / "report.html").is_file()


def test_without_a_run_folder_memory_holds_what_it_needs_and_no_more(tmp_path):
    callback, _ = fine(tmp_path, fast_dev_run=True)
    history = callback.history
    assert [s.attribution.shape for s in history] == [(4, 8, 8), (4, 64, 64)]
    assert memory_of(history.snapshots) < 2 * 4096 + 4 * 64 * 64 * 2 + 4096


def test_without_the_baselines_a_checkpoint_is_smaller_and_a_resumed_run_samples_them_anew(tmp_path):
    callback = watched(tmp_path, epochs=2, save_baselines=False, every_n_train_steps=None, num_baselines=16)
    assert callback.state_dict()["baselines"]["chosen"] is None
    assert callback.baselines is not None
    assert callback.history[-1].baselines == 1  # the sample, and not what served before it
    resumed = watched(
        tmp_path / "again", epochs=4, save_baselines=False, every_n_train_steps=None, num_baselines=16,
        ckpt_path=str(tmp_path / "checkpoints" / "last.ckpt"),
    )  # fmt: skip
    assert [(s.epoch, s.baselines) for s in resumed.history] == [(0, 0), (0, 1), (1, 1), (2, 2), (3, 2)]
    # Drift is never taken across the change.
    assert [s.drift_previous is None for s in resumed.history] == [True, True, False, True, False]
    assert [s.drift_reference is None for s in resumed.history] == [True, True, False, True, False]


def test_without_the_baselines_a_run_resumed_within_an_epoch_samples_the_next_whole_one(tmp_path):
    watched(tmp_path, every=2, epochs=1, save_baselines=False, every_n_train_steps=None)
    (path,) = (tmp_path / "checkpoints").glob("*step=2.ckpt")
    resumed = watched(tmp_path / "again", epochs=3, save_baselines=False, every_n_train_steps=None, ckpt_path=str(path))
    assert [(s.epoch, s.baselines) for s in resumed.history] == [(0, 0), (0, 0), (1, 1), (2, 1)]
    assert len(resumed.baselines) == 4


def test_images_beyond_half_precision_stay_exact_over_a_resume(tmp_path):
    """Raw counts of up to 100,000: kept in float32, in the reservoir of a checkpoint within the first epoch too."""
    dataset = squares(32)
    dataset.tensors = (dataset.tensors[0] * 1e5, dataset.tensors[1])

    def run(folder, **kwargs):
        callback = make_callback(save_dir=str(folder))
        checkpoint = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=2, save_top_k=-1)
        fit(
            folder, callback, checkpoint, train=Resumable(dataset, 8), val=DataLoader(dataset, 8), max_epochs=1,
            enable_checkpointing=True, **kwargs,
        )  # fmt: skip
        assert callback.history[-1].baselines == 1
        return callback.baselines

    whole = run(tmp_path)
    assert whole.dtype == torch.float32
    assert whole.abs().max() > 70000
    resumed = run(tmp_path / "again", ckpt_path=str(tmp_path / "step=2.ckpt"))
    assert fingerprint(resumed) == fingerprint(whole)
