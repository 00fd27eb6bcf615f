"""Several processes on one machine: what travels in a snapshot, what each of them does, and how much memory."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy, interpolate
from torch.utils.data import DataLoader, TensorDataset

from egcam_lightning.training.fit import Fit
from egcam_lightning.training.session import Session
from tests.benchmarks.measure import added_tensors, received_bytes
from tests.support.fits import PooledNet, fit, make_callback
from tests.support.parallel import fsdp2, in_processes
from tests.support.pictures import squares

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(600)]
WIDTH, DEPTH = 2048, 6


class Block(nn.Module):
    """A layer of a vision transformer without its attention: 33 MB of weights."""

    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return x + self.down(self.up(self.norm(x)).relu())


class Heavy(PooledNet):
    """Mostly weights, as are the networks that are sharded: 200 MB in six blocks, each a unit."""

    def __init__(self):
        seed_everything(0, verbose=False)
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.head = nn.Linear(WIDTH, 4)
        del self.features
        self.steps = []

    def configure_model(self):
        for unit in (*self.blocks, self):
            fully_shard(unit, mesh=self.device_mesh["data_parallel"])

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        return self.head(self.blocks(tokens).mean(1))

    def validation_step(self, batch, batch_idx):
        object.__setattr__(self, "step", added_tensors(lambda: cross_entropy(self(batch[0]), batch[1])))


def test_a_snapshot_under_fsdp2_takes_the_memory_of_a_validation_step(table, tmp_path, monkeypatch):
    """Both above what is there before: the shards, and the optimizer's state."""
    taken = []
    take = Session._take

    def measured(session, *args):
        result = []
        taken.append(added_tensors(lambda: result.append(take(session, *args))))
        return result[0]

    monkeypatch.setattr(Session, "_take", measured)

    def work(rank):
        torch.set_num_threads(1)
        net = Heavy()
        loaders = {"train": DataLoader(squares(16), 8), "val": DataLoader(squares(16, seed=1), 8)}
        callback = make_callback(
            num_images=16, num_samples=4, metrics=("infidelity",), target_layer="blocks.1", audit_images=0
        )
        fit(tmp_path, callback, net=net, strategy=fsdp2(2, timeout=60), devices=2, max_epochs=1, **loaders)
        torch.save((taken[-1], net.step), tmp_path / f"memory_{rank}.pt")

    assert in_processes(2, work, seconds=500) == [0, 0]
    for rank in range(2):
        snapshot, step = torch.load(tmp_path / f"memory_{rank}.pt")
        table.add("memory of a snapshot / of a validation step", f"FSDP2, process {rank}", snapshot / step, 1.25)


class Small(PooledNet):
    """A grid of 7x7 of images of 224x224, and next to no arithmetic."""

    def __init__(self):
        seed_everything(0, verbose=False)
        super().__init__(classes=4)
        self.features = nn.Sequential(nn.Conv2d(3, 6, 32, 32), nn.ReLU())


def large(count, seed):
    pictures, labels = squares(count, seed=seed).tensors
    return TensorDataset(interpolate(pictures, size=224), labels)


@dataclass
class Counts:
    """What a process receives, and how many images it sends through the network, between two moments."""

    images: int = 0
    received: int = 0
    seconds: float = 0.0

    def of(self, work):
        """Do it, and count anew from there."""
        self.images, before, begin = 0, received_bytes(), time.perf_counter()
        result = work()
        self.received, self.seconds = received_bytes() - before, time.perf_counter() - begin
        return result


def counted(world, folder, monkeypatch):
    """Of each process: the first look, the first snapshot of an epoch, and the second one."""
    counts, rows = Counts(), []
    forward, init, snapshot = Fit.forward, Session.__init__, Session.snapshot

    def passes(fit, module, *inputs):
        output = forward(fit, module, *inputs)
        counts.images += len(output)
        return output

    def measured(session, *args):
        result = counts.of(lambda: snapshot(session, *args))
        rows.append(replace(counts))
        return result

    def first(session, *args):
        counts.of(lambda: init(session, *args))
        rows.append(replace(counts))

    monkeypatch.setattr(Fit, "forward", passes)
    monkeypatch.setattr(Session, "__init__", first)
    monkeypatch.setattr(Session, "snapshot", measured)

    def work(rank):
        torch.set_num_threads(1)
        loaders = {"train": DataLoader(large(64, 0), 4), "val": DataLoader(large(32, 1), 4)}
        arguments = {"num_images": 16, "num_baselines": 32, "num_samples": 32, "metrics": "default", "audit_images": 0}
        callback = make_callback(target_layer="last", log_at_start=False, **arguments)
        strategy = DDPStrategy(process_group_backend="gloo") if world > 1 else "auto"
        fit(folder, callback, net=Small(), strategy=strategy, devices=world, **loaders)
        torch.save([vars(row) for row in rows], folder / f"counts_{rank}.pt")

    assert in_processes(world, work, seconds=300) == [0] * world
    return [[Counts(**row) for row in torch.load(folder / f"counts_{rank}.pt")] for rank in range(world)]


def test_what_travels_is_what_was_calculated_and_the_work_is_shared(table, tmp_path_factory, monkeypatch):
    """Images and baselines travel once; a snapshot travels by the kilobyte; passes fall with the processes."""
    image = 3 * 224 * 224 * 2  # bytes, in half precision
    alone = 0
    for world in (1, 2, 4, 8):
        with monkeypatch.context() as patch:
            found = counted(world, tmp_path_factory.mktemp("counted"), patch)
        where = f"{world} processes"
        passes = max(later.images for _, _, later in found)
        if world == 1:
            alone = passes
            continue
        first, sample, later = (max(process[i].received for process in found) for i in range(3))
        print(f"{where}: {first} and {sample} bytes once, {later} a snapshot, {passes} of {alone} images")
        table.add("received once / calculated: images and baselines", where, first / ((16 + 32) * image), 1.05)
        added = 2 * (world - 1) / world * 32 * image  # in a ring each sends all of it twice, but for its own part
        table.add("received once / calculated: the sample", where, (sample - later) / added, 1.05)
        table.add("kB received in a snapshot, for each process there is", where, later / 1000 / world, 20)
        table.add("images of a snapshot, of the n-th part of one process's", where, passes * world / alone, 1.5)
