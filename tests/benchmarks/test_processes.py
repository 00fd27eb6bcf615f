"""Several processes on one machine: what travels in a snapshot, what each of them does, and how much memory."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import seed_everything
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from egcam_lightning.training.session import Session
from tests.benchmarks.measure import added_tensors
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
