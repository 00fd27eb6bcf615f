"""Under FSDP2 the weights are spread over processes: it changes and stops nothing there, and measures the same."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.utils.data import DataLoader

from egcam_lightning.metrics.registry import DEFAULT_METRICS
from egcam_lightning.replaying.checkpoints import find_checkpoints
from egcam_lightning.training import sharded_weights
from egcam_lightning.training.fit import Fit
from egcam_lightning.training.process_group import ProcessGroup
from tests.contract.test_scales import EverySecond, Share, assert_close, assert_same, rank
from tests.support.faulty import complaints
from tests.support.fingerprints import Recorder, assert_same_training
from tests.support.fits import Net, PooledNet, fit, make_callback, train_loader, val_loader
from tests.support.parallel import WithoutData, fit_sharded, fsdp2, in_processes
from tests.support.pictures import squares

pytestmark = pytest.mark.timeout(120)


class Sharded(Net):
    """Three units, and the rest in the module itself, which counts its calls and keeps its last features."""

    def __init__(self):
        seed_everything(0, verbose=False)
        super().__init__(inplace=False)
        self.features[1] = nn.GroupNorm(2, 8)
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("seen", torch.zeros(()))
        self.calls = 0

    def configure_model(self):
        if self._device_mesh is not None:
            for unit in (self.features[0], self.features[4], self.head, self):
                fully_shard(unit, mesh=self.device_mesh["data_parallel"])
                unit.set_reduce_scatter_unused_params(True)  # reduces zeros where there is no gradient

    def forward(self, x):
        self.calls += 1
        self.seen += len(x)
        self.last = self.features(x)
        return self.head(self.last) * self.scale

    def validation_step(self, batch, batch_idx):
        self(batch[0])


class Watch(Callback):
    """Writes down the units that a process gathers for us, and how many it holds at most, and between two passes."""

    def __init__(self, folder, watched):
        self.folder, self.watched, self.units, self.most, self.kept = folder, watched, [], 0, 0

    def setup(self, trainer, pl_module, stage):
        gather = sharded_weights._AllGather.__call__

        def logged(each, *args, **kwargs):
            result = gather(each, *args, **kwargs)
            self.units.append(each._take_turn.args[0])
            self.most = max(self.most, held())
            return result

        def held():
            return sum(unit.is_unsharded for unit in sharded_weights.ShardedWeights(pl_module)._units)

        begin = ProcessGroup.begin_pass

        def begun(group):
            begin(group)
            self.kept = max(self.kept, held())

        sharded_weights._AllGather.__call__ = logged
        ProcessGroup.begin_pass = begun

    def on_fit_end(self, trainer, pl_module):
        torch.save((self.units, self.most, self.kept), self.folder / f"gathered_{rank()}.pt")


def gathered(folder, count=2):
    """Of each process, what :class:`Watch` has written; all have gathered the same, and kept nothing."""
    found = [torch.load(folder / f"gathered_{number}.pt") for number in range(count)]
    assert all(log == found[0][0] for log, *_ in found)
    assert all(kept == 0 for *_, kept in found)
    return found


class Writes(Recorder):
    """A recorder of the weights as they are kept, not as they are gathered, that writes a file a process."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def _run_state(self, trainer, module, where):
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()
        super()._run_state(trainer, module, where)

    def on_train_end(self, trainer, pl_module):
        super().on_train_end(trainer, pl_module)
        torch.save(self.states, self.folder / f"states_{rank()}.pt")


def assert_trained_alike(one, other):
    for number in range(2):
        with_it, without = (SimpleNamespace(states=torch.load(at / f"states_{number}.pt")) for at in (one, other))
        assert with_it.states
        assert_same_training(with_it, without)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """Where a fit without the callback has written its states."""
    folder = tmp_path_factory.mktemp("untouched")
    fit_sharded(folder, net=Sharded(), after=[Writes(folder)])
    return folder


def test_training_is_bit_identical_and_every_process_gathers_the_same(tmp_path, untouched):
    callback = make_callback(target_layer="auto", metrics="default", every_n_train_steps=3, num_images=5)
    found = fit_sharded(tmp_path, callback, net=Sharded(), after=[Watch(tmp_path, callback), Writes(tmp_path)])
    assert_trained_alike(tmp_path, untouched)
    one, other = ([s.metrics for s in each.snapshots] for each in found)  # of such fine maps the first alone has files
    assert one == other
    assert [s.when for s in found[0].snapshots] == ["start", "epoch", "step", "epoch"]
    assert not complaints(found[0].messages)
    assert found[0].audit is not None
    for log, most, _ in gathered(tmp_path):
        assert set(log) == {0, 1, 2, 3}
        assert most <= 3  # the module's own, the unit in use, the next one on the way back


@pytest.mark.parametrize(
    ("count", "metrics"),
    [(2, (*DEFAULT_METRICS, "max_sensitivity")), pytest.param(4, ("infidelity",), marks=pytest.mark.slow)],
)
def test_several_processes_measure_what_one_does_without_sharding(tmp_path, count, metrics):
    arguments = {"target_layer": "last", "num_images": 5, "num_samples": 4, "metrics": metrics, "num_baselines": 8}
    arguments["audit_images"] = 0
    single = make_callback(**arguments)
    fit(tmp_path / "one", single, net=Sharded(), train=train_loader(shuffle=False), max_epochs=1)
    parts = DataLoader(squares(32), 8 // count, sampler=EverySecond())
    ranks = fit_sharded(
        tmp_path, make_callback(**arguments), net=Sharded(), train=parts, max_epochs=1, count=count,
        use_distributed_sampler=False,
    )  # fmt: skip
    assert_same(ranks[:2])
    start, end = ranks[0].snapshots
    assert_close(start, single.history[0], 1e-4)
    assert start.attribution.abs().max() > 1e-3
    assert end.epoch == 0
    if count == 2:  # the baselines of the end are another sample of the same images; the model is the same
        assert torch.allclose(end.score, single.history[1].score, atol=1e-4)


class Pooled(PooledNet):
    """Its linear head is a unit of its own."""

    def configure_model(self):
        for unit in (self.features, self.head, self):
            fully_shard(unit, mesh=self.device_mesh["data_parallel"])


def test_a_linear_head_takes_one_pass_however_many_draws(tmp_path):
    logs = []
    for draws in (4, 64):
        folder = tmp_path / str(draws)
        folder.mkdir()
        callback = make_callback(target_layer="last", num_samples=draws, audit_images=0)
        net = Pooled(classes=4)
        found = fit_sharded(folder, callback, net=net, after=[Watch(folder, callback)], max_epochs=1)
        assert found[0].snapshots[-1].completeness_gap.max() < 1e-3
        logs.append(gathered(folder)[0][0])
    assert logs[0] == logs[1]


class InHalf(Sharded):
    """Gathers its weights in half precision."""

    def configure_model(self):
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for unit in (self.features[0], self.features[4], self.head, self):
            fully_shard(unit, mesh=self.device_mesh["data_parallel"], mp_policy=policy)


class InPart(Sharded):
    """Shards its features alone, and keeps what it has gathered until the way back."""

    def configure_model(self):
        for unit in (self.features[0], self.features[4], self.features):
            fully_shard(unit, mesh=self.device_mesh["data_parallel"], reshard_after_forward=False)


class InGroups(Sharded):
    """Two groups of two processes, each with all the weights."""

    def configure_model(self):
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "shards"))
        for unit in (self.features[0], self.features[4], self.head, self):
            fully_shard(unit, mesh=mesh)


@pytest.mark.slow
@pytest.mark.parametrize(("net", "count"), [(InHalf, 2), (InPart, 2), (InGroups, 4)])
def test_training_is_bit_identical_in_other_ways_to_shard(tmp_path, net, count):
    for name in ("with", "without"):
        folder = tmp_path / name
        folder.mkdir()
        callbacks = [make_callback(metrics="default", num_images=5, target_layer="last")] if name == "with" else []
        found = fit_sharded(folder, *callbacks, net=net(), count=count, after=[Writes(folder)])
        if name == "with":
            assert_same(found[:2])
            assert not complaints(found[0].messages)
    assert_trained_alike(tmp_path / "with", tmp_path / "without")


def test_a_unit_that_one_process_holds_is_gathered_for_another_and_held_on(tmp_path):
    """As where one is half way through a pass, and another begins one."""

    def work(number):
        address = f"tcp://127.0.0.1:{os.environ['MASTER_PORT']}"
        torch.distributed.init_process_group("gloo", init_method=address, rank=number, world_size=2)
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 2))
        expected = net[0].weight.detach().clone()
        unit = fully_shard(net[0], mesh=init_device_mesh("cpu", (2,)))
        weights = sharded_weights.ShardedWeights(net)
        unit.unshard()
        held = unit.weight
        if number == 0:
            weights.gather(0)
            assert unit.weight is held
            assert torch.equal(held, expected)
        else:
            unit.reshard()
            unit.unshard()
            assert torch.equal(unit.weight, expected)

    assert in_processes(2, work, seconds=30) == [0, 0]


# ---- faults


@dataclass
class Fault:
    """What fails in one process, in the passes that are made for the snapshot behind the first epoch.

    Attributes:
        process: in which.
        error: with what.
        where: half way through the forward pass, or on the way back.
        at_most: how many rows go through all the same.
    """

    process: int
    error: Exception
    where: str
    at_most: int = 0
    explains: bool = False

    def raise_it(self, _=None):
        raise self.error

    def at(self, net, output):
        if self.explains and net.trainer.global_step == 2 and rank() == self.process and len(output) > self.at_most:
            if self.where == "forward":
                self.raise_it()
            if output.requires_grad:
                output.register_hook(self.raise_it)


def fit_with(fault, tmp_path, callback, monkeypatch):
    """A fit in which this happens, and what each process had."""
    forward = Fit.forward

    class Faulty(Sharded):
        def forward(self, x):
            self.calls += 1
            self.seen += len(x)
            self.last = self.features(x)
            output = self.head(self.last)
            fault.at(self, output)
            return output * self.scale

    def told(fit, module, *inputs):
        fault.explains = True
        try:
            return forward(fit, module, *inputs)
        finally:
            fault.explains = False

    monkeypatch.setattr(Fit, "forward", told)
    return fit_sharded(tmp_path, callback, net=Faulty(), after=[Watch(tmp_path, callback), Writes(tmp_path)])


MEMORY = torch.OutOfMemoryError("CUDA out of memory")
BROKEN = ArithmeticError("it broke")


@pytest.mark.parametrize(
    ("process", "error", "where"),
    [(0, BROKEN, "forward"), (1, BROKEN, "backward"), pytest.param(1, MEMORY, "forward", marks=pytest.mark.slow)],
)
def test_a_pass_that_fails_in_one_process_leaves_one_snapshot_out(
    tmp_path, untouched, monkeypatch, process, error, where
):
    callback = make_callback(strict=False, target_layer="last")
    found = fit_with(Fault(process, error, where), tmp_path, callback, monkeypatch)
    assert_trained_alike(tmp_path, untouched)
    assert_same(found)
    assert [(s.epoch, s.when) for s in found[0].snapshots] == [(0, "start"), (1, "epoch")]
    told = complaints(found[0].messages)
    assert len(told) == 1
    assert f"{type(error).__name__}: {error}" in told[0]
    assert ("failed in process 1" in told[0]) == (process == 1)
    gathered(tmp_path)


HALVED = {"target_layer": "last", "num_images": 8, "num_samples": 4}


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """The snapshots of a fit in which memory suffices, and how many units are gathered for them."""
    folder = tmp_path_factory.mktemp("usual")
    callback = make_callback(**HALVED)
    found = fit_sharded(folder, callback, net=Sharded(), after=[Watch(folder, callback)])
    return found[0].snapshots, len(gathered(folder)[0][0])


@pytest.mark.parametrize(("process", "where"), [(0, "forward"), (1, "backward")])
def test_memory_that_runs_out_in_one_process_halves_its_chunks(tmp_path, untouched, usual, monkeypatch, process, where):
    callback = make_callback(**HALVED)
    found = fit_with(Fault(process, MEMORY, where, at_most=3), tmp_path, callback, monkeypatch)
    assert_trained_alike(tmp_path, untouched)
    assert_same(found)
    expected, units = usual
    for one, other in zip(found[0].snapshots, expected, strict=True):
        assert_close(one, other, 1e-5)
    assert len(gathered(tmp_path)[0][0]) > units


class Quiet(WithoutData, Sharded):
    """Passes would wait for each other by themselves."""


@pytest.mark.parametrize("sizes", [pytest.param((16, 0), marks=pytest.mark.slow), (0, 16)])
def test_a_process_without_validation_data_takes_part(tmp_path, sizes):
    callback = make_callback(metrics=("infidelity",), target_layer="last")
    found = fit_sharded(
        tmp_path, callback, net=Quiet(), after=[Watch(tmp_path, callback)], num_sanity_val_steps=0,
        train=train_loader(batch_size=4), val=val_loader(sampler=Share(*sizes), batch_size=4),
        use_distributed_sampler=False,
    )  # fmt: skip
    assert_same(found)
    assert [(s.epoch, s.when) for s in found[0].snapshots if s.when == "epoch"] == [(0, "epoch"), (1, "epoch")]
    gathered(tmp_path)


def test_processes_whose_images_call_for_other_passes_wait_for_each_other(tmp_path):
    """One process's images are all the same: whether a layer is a cut shows there with noise beside them alone."""
    images = squares(8, seed=1).tensors[0].clone()
    images[1::2] = images[1]
    callback = make_callback(target_layer="last", metrics=("infidelity",), probe=(images, torch.arange(8) % 4))
    found = fit_sharded(tmp_path, callback, net=Sharded(), after=[Watch(tmp_path, callback)])
    assert_same(found)
    assert len(found[0].snapshots) == 3
    gathered(tmp_path)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("dies", [True, False], ids=["dies", "hangs"])
def test_a_process_that_is_lost_in_a_snapshot_ends_the_others_in_our_name(tmp_path, strategy, dies):
    class Lost(Sharded):
        def forward(self, x):
            if rank() == 1 and self.trainer.global_step == 2 and not self.training:
                os._exit(3) if dies else time.sleep(60)
            return super().forward(x)

    def work(number):
        seconds = timedelta(seconds=4)
        kind = DDPStrategy(process_group_backend="gloo", timeout=seconds) if strategy == "ddp" else fsdp2(2, timeout=4)
        callback = make_callback(strict=False, target_layer="last")  # warnings, where training can go on
        try:
            fit(tmp_path, callback, net=Lost(), strategy=kind, devices=2)
        except Exception as error:
            (tmp_path / f"error_{number}").write_text(f"{type(error).__name__}: {error}")

    codes = in_processes(2, work, seconds=30, patient=False)
    assert codes == [0, 3 if dies else None]
    assert (tmp_path / "error_0").read_text().startswith("LostProcess: ExpectedGradCAMCallback waited in vain")


# ---- checkpoints


@pytest.mark.parametrize(
    "whole", [pytest.param(True, marks=pytest.mark.slow), False], ids=["one file", "a file a process"]
)
def test_a_resumed_run_goes_on_as_if_never_stopped(tmp_path, whole):
    def run(name, **kwargs):
        (tmp_path / name).mkdir()
        callback = make_callback(target_layer="last", metrics=("infidelity",), audit_images=0)
        checkpoint = ModelCheckpoint(tmp_path / name, filename="last")
        return fit_sharded(
            tmp_path / name, callback, checkpoint, net=Sharded(), train=train_loader(shuffle=False),
            enable_checkpointing=True, whole_checkpoints=whole, **kwargs,
        )  # fmt: skip

    without_stop = run("without a stop", max_epochs=3)
    run("stopped", max_epochs=2)
    resumed = run("resumed", max_epochs=3, ckpt_path=str(tmp_path / "stopped" / "last.ckpt"))
    assert_same(resumed)
    assert [s.key for s in resumed[0].snapshots] == [s.key for s in without_stop[0].snapshots]
    for one, other in zip(resumed[0].snapshots, without_stop[0].snapshots, strict=True):
        assert one.metrics == other.metrics
        assert torch.equal(one.attribution, other.attribution)
    if whole:
        assert [one.epoch for one in find_checkpoints(tmp_path / "stopped")] == [1]
    else:
        for place in (tmp_path / "stopped", tmp_path / "stopped" / "last.ckpt"):
            with pytest.raises(ValueError, match=r"is a checkpoint in parts.*save_distributed_checkpoint=False"):
                find_checkpoints(place)
    assert without_stop[0].weights.pop("seen") > 0  # counts what is validated before each start, too
    for key, value in without_stop[0].weights.items():
        assert torch.equal(value, resumed[0].weights[key]), key
