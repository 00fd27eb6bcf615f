"""It keeps its budget: snapshots keep to their share of the fit's time, and say truly what it is."""

from __future__ import annotations

import csv
import logging
import time
from functools import wraps
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torchmetrics import Metric

import egcam_lightning.training.session
from egcam_lightning import ExpectedGradCAMCallback
from tests.support.fits import Net, fit, make_callback


class Slow(Metric):
    """Takes its time."""

    def __init__(self, seconds: float = 0.05):
        super().__init__()
        self.seconds = seconds
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, attribution):
        time.sleep(self.seconds)

    def compute(self):
        return self.count.float()


class SlowNet(Net):
    """Takes its time to train: 4 steps an epoch."""

    def __init__(self, seconds: float = 0.02):
        super().__init__()
        self.seconds = seconds

    def training_step(self, batch, batch_idx):
        time.sleep(self.seconds)
        return super().training_step(batch, batch_idx)


class Clock:
    """Stands in for the session's clock; it moves with the sleep of the slow ones alone."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(egcam_lightning.training.session.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.sleep)

    def sleep(self, seconds):
        self.now += seconds


HOOKS = ["setup", *(name for name in vars(ExpectedGradCAMCallback) if name.startswith("on_"))]


class Profiled(ExpectedGradCAMCallback):
    """Every hook's time, taken from outside, and the fit's, when each value was logged."""

    def begin(self):
        self.spent, self.started, self.shares = 0.0, None, []


def profiled(name):
    hook = getattr(ExpectedGradCAMCallback, name)

    @wraps(hook)
    def timed(self, *args, **kwargs):
        begin = time.perf_counter()
        self.started = self.started or begin
        try:
            return hook(self, *args, **kwargs)
        finally:
            self.spent += time.perf_counter() - begin
            self.shares.append((len(self.history), self.spent / (time.perf_counter() - self.started)))

    return timed


for _name in HOOKS:
    setattr(Profiled, _name, profiled(_name))


def logged(trainer, key):
    with open(Path(trainer.logger.log_dir) / "metrics.csv") as file:
        return [float(row[key]) for row in csv.DictReader(file) if row[key]]


def test_the_overhead_that_is_logged_is_what_a_profiler_measures(tmp_path):
    callback = Profiled(num_images=4, num_samples=2, num_baselines=4, metrics=(Slow(),), max_overhead=None, strict=True)
    callback.begin()
    trainer, _ = fit(tmp_path, callback, net=SlowNet(), max_epochs=6)
    at_snapshot = dict(reversed(callback.shares))  # when the hook that took it returned
    fractions = logged(trainer, "egcam/overhead_fraction")
    assert len(fractions) == 7
    for count, fraction in enumerate(fractions, start=1):
        assert fraction == pytest.approx(at_snapshot[count], rel=0.1), f"snapshot {count}"
    assert 0.05 < fractions[-1] < 0.95


def test_the_seconds_that_are_logged_are_those_of_the_snapshot(tmp_path):
    trainer, _ = fit(tmp_path, make_callback(metrics=(Slow(0.3),)), max_epochs=3)
    seconds = logged(trainer, "egcam/overhead_seconds")
    assert len(seconds) == 4
    assert all(0.3 < value < 0.3 + 0.5 for value in seconds)


@pytest.fixture
def stretched(tmp_path, monkeypatch, caplog):
    """A run whose budget is far too small for a snapshot after every epoch: an epoch takes 4 s, a snapshot 2."""
    Clock(monkeypatch)
    callback = make_callback(metrics=(Slow(2.0),), max_overhead=0.1, log_at_start=False)
    caplog.set_level(logging.INFO, "lightning.pytorch")
    trainer, _ = fit(tmp_path, callback, net=SlowNet(1.0), max_epochs=70)
    return callback, trainer, [record.getMessage() for record in caplog.records]


def test_past_the_budget_snapshots_are_taken_less_often_and_evenly_and_one_message_says_so(stretched):
    callback, trainer, messages = stretched
    epochs = [s.epoch for s in callback.history]
    assert epochs[:3] == [0, 1, 2]  # always
    gaps = {later - earlier for earlier, later in pairwise(epochs[2:])}
    assert len(epochs) >= 6
    assert max(gaps) <= 2 * min(gaps), epochs  # one interval, and at most once its half
    fractions = logged(trainer, "egcam/overhead_fraction")
    assert fractions[2] > 0.1  # what the first three cost
    assert fractions[-1] <= 0.1
    assert fractions[-1] == pytest.approx(len(epochs) * 2 / (4 * (epochs[-1] + 1) + 2 * len(epochs)))
    said = [text for text in messages if "less often" in text]
    assert len(said) == 1
    assert "max_overhead=0.1" in said[0]


def test_without_a_budget_no_snapshot_is_left_out(tmp_path):
    callback = make_callback(metrics=(Slow(0.05),))
    fit(tmp_path, callback, max_epochs=8)
    assert len(callback.history) == 9


def test_the_schedule_is_part_of_the_state(stretched):
    callback = stretched[0]
    state = callback.state_dict()
    resumed = make_callback(max_overhead=0.1)
    resumed.load_state_dict(state)
    assert resumed.state_dict()["schedule"] == state["schedule"]
    assert state["schedule"]["interval"] > 1
    assert state["schedule"]["elapsed"] == 70 * 4 + 2 * len(callback.history)
    assert state["schedule"]["overhead_seconds"] == 2 * len(callback.history)


def test_a_resumed_run_goes_on_at_the_interval_it_had(tmp_path):
    """The budget counts the time of all sessions: a new process does not take the first three again."""
    first = make_callback(metrics=(Slow(0.1),), max_overhead=0.01, log_at_start=False)
    trainer, _ = fit(tmp_path, first, max_epochs=6)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert len(first.history) == 3
    second = make_callback(metrics=(Slow(0.1),), max_overhead=0.01, log_at_start=False)
    fit(tmp_path, second, max_epochs=8, ckpt_path=str(tmp_path / "last.ckpt"))
    assert [s.epoch for s in second.history] == [0, 1, 2]
