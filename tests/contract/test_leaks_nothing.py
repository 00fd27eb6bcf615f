"""It leaks nothing: whatever the number of snapshots, nothing piles up but a history of 4 kB each."""

from __future__ import annotations

import gc
import threading
import weakref
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from egcam_lightning.history.packed import PackedSnapshots
from tests.support.fingerprints import memory_of
from tests.support.fits import Net, fit, make_callback, train_loader, val_loader
from tests.support.heap import bytes_in_use
from tests.support.pictures import squares
from tests.support.snapshots import random_snapshot


class Gauges(Callback):
    """Reads the process's memory, tensors, files, threads and hooks after every tenth epoch."""

    def __init__(self):
        self.readings = []

    def on_train_epoch_end(self, trainer, pl_module):
        if (trainer.current_epoch + 1) % 10:
            return
        gc.collect()
        objects = gc.get_objects()
        files = Path("/proc/self/fd")
        tables = [vars(module) for module in pl_module.modules()]
        self.readings.append(
            {
                "memory": bytes_in_use(),
                "tensors": sum(issubclass(type(found), torch.Tensor) for found in objects),
                "graphs": sum(type(found).__name__.endswith("Backward0") for found in objects),
                "files": len(list(files.iterdir())) if files.exists() else 0,
                "threads": threading.active_count(),
                "hooks": sum(len(v) for table in tables for name, v in table.items() if name.endswith("_hooks") and v),
            }
        )


class SevenBySeven(Net):
    """A target layer with a grid of 7 x 7."""

    def __init__(self):
        super().__init__()
        self.features[3] = nn.AdaptiveMaxPool2d(7)
        self.head[1] = nn.AdaptiveAvgPool2d(2)


def run(tmp_path, epochs, **arguments):
    callback, gauges = make_callback(**arguments), Gauges()
    fit(
        tmp_path, callback, gauges, net=SevenBySeven(), max_epochs=epochs, train=train_loader(squares(8)),
        val=val_loader(squares(16, seed=1), batch_size=16), logger=False,
    )  # fmt: skip
    assert len(callback.history) == 1 + epochs
    return callback, gauges.readings


def assert_flat(readings, slack):
    """From the first reading on nothing grows, but memory by so many bytes a snapshot."""
    for name in ("tensors", "files", "threads", "hooks", "graphs"):
        # Fewer there may be: what earlier tests have left is collected in the midst of it.
        assert max(reading[name] for reading in readings) == readings[0][name], name
    growth = (readings[-1]["memory"] - readings[0]["memory"]) / (10 * (len(readings) - 1))
    assert growth <= slack, f"{growth:.0f} bytes a snapshot"


@pytest.fixture
def page_at_the_end(monkeypatch):
    """What building the page takes for a moment, and gives back, comes in steps that drown everything else."""
    monkeypatch.setattr("egcam_lightning.sinks.publisher._PAGE_SECONDS", float("inf"))


def test_nothing_but_the_history_grows(tmp_path, page_at_the_end):
    callback, readings = run(tmp_path, 50, num_images=16)
    # Over so few snapshots the allocator's own steps, of 128 kB and more, count for more than what is kept.
    assert_flat(readings, slack=4096 + 2**19 / 40)
    assert memory_of(callback.history.snapshots) / 50 <= 4096


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_five_hundred_snapshots_with_all_metrics_take_4_kb_each(tmp_path, page_at_the_end):
    _, readings = run(tmp_path, 500, num_images=16, metrics="default", target_layer="last")  # of 7 x 7 cells
    assert_flat(readings[20:], slack=4096)


def test_the_history_in_memory_is_packed():
    def snapshot(step):
        metrics = {f"metric {index}": float(torch.rand(1)) for index in range(25)}
        return random_snapshot(0, step, 16, (7, 7), metrics=metrics)

    packed, first = PackedSnapshots(), snapshot(0)
    for step in range(2000):
        packed = packed.plus(snapshot(step))
        if step == 999:
            gc.collect()
            before = bytes_in_use()
    gc.collect()
    assert (bytes_in_use() - before) / 1000 <= 4096
    again = PackedSnapshots([first])[0]
    for field in ("attribution", "target", "prediction", "score", "drift_previous", "noise_floor"):
        assert torch.equal(getattr(again, field), getattr(first, field))
        assert getattr(again, field).dtype == getattr(first, field).dtype
    assert again.metrics == first.metrics


def test_after_the_fit_the_callback_holds_neither_model_nor_trainer(tmp_path):
    callback = make_callback(metrics="default")
    trainer, net = fit(tmp_path, callback)
    found = weakref.ref(trainer), weakref.ref(net)
    del trainer, net, callback.log, callback.log_dict  # Lightning's own, which it hangs on every callback
    gc.collect()
    assert [reference() is None for reference in found] == [True, True]
    assert len(callback.history) == 3


def test_no_file_stays_open(tmp_path):
    if not Path("/proc/self/fd").exists():
        pytest.skip("open files are counted through /proc, which this system does not have")
    fit(tmp_path, make_callback())
    before = {path.readlink() for path in Path("/proc/self/fd").iterdir() if path.exists()}
    fit(tmp_path, make_callback(save_dir=str(tmp_path / "files")))
    after = {path.readlink() for path in Path("/proc/self/fd").iterdir() if path.exists()}
    assert not any(str(tmp_path / "files") in str(path) for path in after - before)
