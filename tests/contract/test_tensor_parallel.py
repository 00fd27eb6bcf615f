"""Layers whose channels are spread over processes: these make each pass together, and see what one process sees."""

from __future__ import annotations

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, seed_everything
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.functional import cross_entropy

from egcam_lightning.explain.sharding import whole
from tests.contract.test_scales import assert_close, assert_same, rank
from tests.contract.test_sharded_weights import Watch, Writes, assert_trained_alike, gathered
from tests.support.fits import fit, make_callback, train_loader
from tests.support.parallel import fit_sharded, fsdp2, in_processes

pytestmark = pytest.mark.timeout(120)


class Mlp(nn.Module):
    def __init__(self, residual):
        super().__init__()
        self.up, self.act, self.down, self.residual = nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8), residual

    def forward(self, x):
        return self.residual * x + self.down(self.act(self.up(x)))


class Parallel(LightningModule):
    """Patches, a block whose hidden channels are spread over processes, and a head.

    Args:
        local: whether the spread layers return plain tensors, as is usual, or tensors that know of their parts.
        residual: whether something goes past the block.

    """

    def __init__(self, local=True, residual=1.0):
        super().__init__()
        seed_everything(0, verbose=False)
        self.local = local
        self.patches = nn.Conv2d(3, 8, 2, 2)
        self.block, self.head = Mlp(residual), nn.Linear(8, 4)

    def configure_model(self):
        if self._device_mesh is not None:
            up = ColwiseParallel(use_local_output=self.local)
            down = RowwiseParallel(output_layouts=Replicate())
            plan = {"block.up": up, "block.down": down}
            if not self.local:  # the logits are spread as well, class by class
                plan["head"] = ColwiseParallel(use_local_output=False)
            parallelize_module(self, self.device_mesh["tensor_parallel"], plan)

    def forward(self, x):
        return self.head(self.block(self.patches(x).flatten(2).transpose(1, 2)).mean(1))

    def training_step(self, batch, batch_idx):
        return cross_entropy(whole(self(batch[0])), batch[1])

    def validation_step(self, batch, batch_idx):
        self(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05)


PARALLEL = {"tensor": 2, "train": train_loader(shuffle=False), "use_distributed_sampler": False}


@pytest.mark.parametrize(
    ("layer", "net"),
    [("block", {}), ("block.up", {"local": False, "residual": 0.0})],
    ids=["the block", "a layer whose channels are spread"],
)
def test_two_processes_measure_what_one_does_and_train_alike(tmp_path, layer, net):
    arguments = {"target_layer": layer, "num_images": 5, "num_samples": 4, "metrics": ("infidelity", "max_sensitivity")}
    single = make_callback(**arguments)
    fit(tmp_path / "one", single, net=Parallel(**net), train=train_loader(shuffle=False))
    ranks = fit_sharded(tmp_path, make_callback(**arguments), net=Parallel(**net), after=[Writes(tmp_path)], **PARALLEL)
    assert_same(ranks)
    assert len(ranks[0].snapshots) == 3
    for one, other in zip(ranks[0].snapshots, single.history, strict=True):
        assert_close(one, other, 1e-4)
        assert one.attribution.abs().max() > 1e-3
    assert ranks[0].audit["sentence"] == single.history.audit.sentence
    (tmp_path / "without").mkdir()
    fit_sharded(tmp_path / "without", net=Parallel(**net), after=[Writes(tmp_path / "without")], **PARALLEL)
    assert_trained_alike(tmp_path, tmp_path / "without")


class InBoth(Parallel):
    """Spread within its block, and sharded over the other dimension."""

    def configure_model(self):
        super().configure_model()
        if self._device_mesh is not None:
            for unit in (self.block, self):
                fully_shard(unit, mesh=self.device_mesh["data_parallel"])


@pytest.mark.slow
def test_four_processes_in_two_dimensions_measure_what_one_does(tmp_path):
    arguments = {"target_layer": "block", "num_images": 5, "num_samples": 4, "metrics": ("infidelity",)}
    single = make_callback(**arguments)
    fit(tmp_path / "one", single, net=InBoth(), train=train_loader(shuffle=False))
    callback = make_callback(**arguments)
    ranks = fit_sharded(tmp_path, callback, net=InBoth(), count=4, after=[Watch(tmp_path, callback)], **PARALLEL)
    assert_same(ranks[:2])
    assert_same(ranks[2:])
    assert_close(ranks[0].snapshots[0], single.history[0], 1e-4)
    # Each image passes by two reservoirs, of which the later baselines are another sample; the model is the same.
    assert torch.allclose(ranks[0].snapshots[-1].score, single.history[-1].score, atol=1e-4)
    gathered(tmp_path, 4)


def test_a_layer_of_which_each_process_has_a_part_is_refused_by_name(tmp_path):
    def work(number):
        callback = make_callback(target_layer="block.up", strict=False)
        try:
            fit(tmp_path, callback, net=Parallel(residual=0.0), strategy=fsdp2(2, tensor=2), devices=2)
        except MisconfigurationException as error:
            (tmp_path / f"error_{number}").write_text(str(error))

    assert in_processes(2, work) == [0, 0]
    for number in range(2):
        said = (tmp_path / f"error_{number}").read_text()
        assert said.startswith("The layer 'block.up' is within a tensor-parallel block")
        assert "use_local_output=False" in said


def test_a_failure_half_way_through_a_layer_ends_all_in_our_name_and_not_never(tmp_path):
    class Breaks(Parallel):
        def forward(self, x):
            if rank() == 1 and self.trainer.global_step == 4 and not self.training:
                raise ArithmeticError("it broke")
            return super().forward(x)

    def work(number):
        callback = make_callback(target_layer="block", strict=False)
        try:
            fit(tmp_path, callback, net=Breaks(), strategy=fsdp2(2, tensor=2, timeout=4), devices=2)
        except Exception as error:
            (tmp_path / f"error_{number}").write_text(f"{type(error).__name__}: {error}")

    assert in_processes(2, work, seconds=40) == [0, 0]
    for number in range(2):
        assert (tmp_path / f"error_{number}").read_text().startswith("LostProcess: ExpectedGradCAMCallback waited")
