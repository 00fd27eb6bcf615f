"""It scales: several processes look as one does, and never wait for each other in vain."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, SingleDeviceStrategy
from scipy import stats
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader, IterableDataset, Sampler, TensorDataset

from egcam_lightning import ExpectedGradCAM, ExpectedGradCAMCallback, History
from egcam_lightning.data.baselines import Baselines
from egcam_lightning.data.probe import Probe
from egcam_lightning.metrics.registry import DEFAULT_METRICS
from egcam_lightning.training.process_group import ProcessGroup
from egcam_lightning.training.turns import FailedElsewhere
from tests.support import faulty, fits
from tests.support.faulty import BrokenMetric, complaints
from tests.support.fingerprints import fingerprint
from tests.support.fits import Net, fit, train_loader, val_loader
from tests.support.parallel import WithoutData, fit_in_two, in_threads
from tests.support.pictures import squares

pytestmark = pytest.mark.timeout(60)
FIELDS = ("attribution", "target", "prediction", "score", "baseline_score", "completeness_gap", "noise_floor")


def make_callback(**kwargs):
    """At the last layer: of finer maps the first process alone has the files, and the others have averages."""
    return fits.make_callback(**{"target_layer": "last", **kwargs})


def rank():
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def assert_close(one, other, tolerance):
    assert one.key == other.key
    for field in FIELDS:
        a, b = getattr(one, field), getattr(other, field)
        assert torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance, equal_nan=True), field
    assert one.metrics.keys() == other.metrics.keys()
    for key, value in one.metrics.items():
        assert value == pytest.approx(other.metrics[key], rel=tolerance, abs=tolerance), key


def assert_same(ranks):
    """Both processes hold the same history, bit for bit, and logged the same."""
    first, second = ranks
    assert first.logged.keys() == second.logged.keys()
    ours = {key: value for key, value in first.logged.items() if key.startswith("egcam/")}
    assert ours
    assert all(value == second.logged[key] for key, value in ours.items())
    assert len(first.snapshots) == len(second.snapshots) > 0
    for one, other in zip(first.snapshots, second.snapshots, strict=True):
        assert one.key == other.key
        assert one.metrics == other.metrics
        assert one.baselines == other.baselines
        fields = [(getattr(one, field), getattr(other, field)) for field in FIELDS]
        assert all(fingerprint(a) == fingerprint(b) for a, b in fields)


class Plain(Net):
    """Without normalisation: two processes with half a batch each then train as one does."""

    def __init__(self):
        seed_everything(0, verbose=False)
        super().__init__()
        self.features[1] = torch.nn.Identity()


OWN_SAMPLER = {"use_distributed_sampler": False}


class EverySecond(Sampler):
    """Both processes' batches of 4 together are one process's batches of 8. Lightning's own sampler shuffles."""

    def __iter__(self):
        return iter(range(rank(), 32, 2))

    def __len__(self):
        return 16


def test_two_processes_measure_what_one_does(tmp_path):
    """Five images over two processes; the same training, in half batches."""
    metrics = (*DEFAULT_METRICS, "max_sensitivity")  # which explains again: by the same draws in every process
    arguments = {"num_images": 5, "num_samples": 4, "metrics": metrics, "every_n_train_steps": 1}
    arguments["num_baselines"] = 8  # more than draws, so that each image has others
    single = make_callback(**arguments)
    fit(tmp_path / "one", single, net=Plain(), train=train_loader(shuffle=False), max_epochs=1)
    double = make_callback(**arguments)
    halves = DataLoader(squares(32), 4, sampler=EverySecond())
    ranks = fit_in_two(tmp_path, double, net=Plain(), train=halves, max_epochs=1, **OWN_SAMPLER)
    assert_same(ranks)
    start, *steps, _ = ranks[0].snapshots  # the last has baselines of its own
    assert_close(start, single.history[0], 1e-5)
    assert len(steps) == 3
    for step, expected in zip(steps, single.history[1:-1], strict=True):
        assert step.drift_previous is not None
        assert_close(step, expected, 1e-3)  # the weights are those of one process but for rounding


def test_the_first_process_alone_writes_files_and_all_report_the_same_values(tmp_path):
    callback = make_callback(save_dir=str(tmp_path / "files"), metrics="default")
    ranks = fit_in_two(tmp_path, callback)
    assert_same(ranks)
    assert ranks[1].run_dir == "None"
    history = History.load(ranks[0].run_dir)
    assert [s.key for s in history] == [s.key for s in ranks[0].snapshots]
    assert ranks[0].logged["egcam/overhead_fraction"] == ranks[1].logged["egcam/overhead_fraction"] > 0


def numbered(count):
    """Images that tell which they are."""
    pictures = torch.arange(count).float().view(-1, 1, 1, 1).expand(count, 3, 16, 16) / 64
    return TensorDataset(pictures.clone(), torch.arange(count) % 4)


def test_the_baselines_are_one_sample_of_what_both_saw(tmp_path):
    ranks = fit_in_two(tmp_path, make_callback(num_baselines=12), train=train_loader(numbered(64), batch_size=8))
    one, other = (found.baselines["chosen"] for found in ranks)
    assert torch.equal(one, other)
    assert len(one) == 12
    numbers = (one[:, 0, 0, 0].float() * 64).int().tolist()
    assert len(set(numbers)) == 12
    assert set(numbers) <= set(range(64))
    assert_same(ranks)


def sample(seed, streams, size):
    """The numbers of the images chosen from streams of numbered images, one stream a process."""

    def work(strategy):
        ranks = ProcessGroup(strategy)
        baselines = Baselines(size, seed)
        baselines.prepare(ranks, None)
        for part in streams[ranks.rank].split(7):
            baselines.update(part)
        if len(streams[ranks.rank]):
            baselines.end_epoch()
        baselines.open = False
        probe = Probe(torch.zeros(1, 1, 1, 1))
        return baselines.current(ranks, probe, torch.device("cpu"))

    results = in_threads(len(streams), work)
    assert all(torch.equal(found[0], results[0][0]) and found[1] == 1 for found in results)
    return results[0][0].flatten().int().tolist()


@pytest.mark.parametrize("lengths", [(30, 10), (20, 0, 20), (13, 13, 13, 1)])
def test_the_baselines_are_a_uniform_sample_of_all_streams(lengths):
    """However uneven the streams: each of 40 images is chosen in one of ten samples of four."""
    numbers = torch.arange(40.0).view(-1, 1, 1, 1)
    streams = numbers.split(list(lengths))
    trials = 400
    counts = torch.zeros(40)
    for seed in range(trials):
        chosen = sample(seed, streams, 4)
        assert len(set(chosen)) == 4
        counts[chosen] += 1
    # Without replacement the counts vary less than a multinomial's, by (1 - 4/40).
    statistic = float(((counts - trials / 10) ** 2 / (trials / 10)).sum()) / (1 - 4 / 40)
    assert 1e-3 < stats.chi2.sf(statistic, 39) < 1 - 1e-3


LIKE = pytest.mark.parametrize("like", ["ddp", "xla"])


@LIKE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_the_whole_is_joined_from_every_part_bit_by_bit(like, dtype, shape):
    whole = (torch.randn(7, *shape, generator=torch.Generator().manual_seed(0)) * 50).abs().to(dtype)

    def work(strategy):
        ranks = ProcessGroup(strategy)
        rows, _ = ranks.shard(len(whole))
        return ranks.gather(whole[rows], len(whole))

    for found in in_threads(3, work, like):
        assert found.dtype == dtype
        assert torch.equal(found, whole)


@LIKE
def test_what_every_process_says_is_heard_by_all(like):
    def work(strategy):
        ranks = ProcessGroup(strategy)
        value = torch.full((2,), float(ranks.rank))
        known = "mine" if ranks.rank == 2 else None
        flags = ranks.all(True), ranks.all(ranks.rank != 1)
        return ranks.all_gather(value).tolist(), ranks.broadcast(ranks.rank), ranks.broadcast_known(known), flags

    assert in_threads(3, work, like) == [([[0, 0], [1, 1], [2, 2]], 0, "mine", (True, False))] * 3


@LIKE
def test_images_of_another_size_or_type_in_one_process_are_brought_to_those_of_the_first(like):
    streams = [torch.rand(6, 3, 8, 8), torch.rand(6, 3, 4, 6)]

    def work(strategy):
        ranks = ProcessGroup(strategy)
        baselines = Baselines(6, 0)
        baselines.prepare(ranks, None)
        baselines.update(streams[ranks.rank])
        baselines.end_epoch()
        return baselines.current(ranks, Probe(torch.zeros(1, 3, 8, 8)), torch.device("cpu"))

    one, other = in_threads(2, work, like)
    assert one[0].shape == (6, 3, 8, 8)
    assert torch.equal(one[0], other[0])


@LIKE
def test_what_fails_in_one_process_fails_in_all_with_its_cause(like):
    def work(strategy):
        ranks = ProcessGroup(strategy)

        def maybe():
            if ranks.rank == 1:
                raise KeyError("lost")
            return ranks.rank

        return ranks.run_or_raise_everywhere(maybe)

    first, second, third = in_threads(3, work, like)
    assert isinstance(second, KeyError)
    for other in (first, third):
        assert isinstance(other, FailedElsewhere)
        assert str(other) == "it failed in process 1. KeyError: 'lost'"


@LIKE
@pytest.mark.parametrize("count", [1, 3, 7])
def test_shared_work_comes_together_in_every_process(like, count):
    def work(strategy):
        done = []
        whole = ProcessGroup(strategy).share(lambda rows: done.extend(rows.tolist()) or 10 * rows, count)
        return whole.tolist(), len(done)

    expected = [10 * row for row in range(count)]
    assert in_threads(3, work, like) == [(expected, -(-count // 3))] * 3


# ---- uneven processes


class Stepping(Callback):
    """Counts the validation batches of each process."""

    def __init__(self, folder):
        self.folder, self.count = folder, 0

    def on_validation_batch_start(self, trainer, *_):
        self.count += trainer.state.fn == "fit" and not trainer.sanity_checking

    def on_fit_end(self, trainer, pl_module):
        (self.folder / f"batches_{trainer.global_rank}").write_text(str(self.count))


def batches(tmp_path):
    return [int((tmp_path / f"batches_{rank}").read_text()) for rank in range(2)]


class Share(Sampler):
    """The first images for process 0, so many for process 1."""

    def __init__(self, first, second):
        self.sizes = first, second

    def __iter__(self):
        return iter(range(len(self)))

    def __len__(self):
        return self.sizes[rank()]


class Stream(IterableDataset):
    """Images for process 0, so many for process 1; without a length."""

    def __init__(self, first, second):
        self.sizes = first, second

    def __iter__(self):
        return iter(TensorDataset(*squares(16, seed=1)[: self.sizes[rank()]]))


class Quiet(WithoutData, Plain):
    """With values to reduce or buffers to share Lightning itself would not end."""


@pytest.mark.parametrize(
    ("train", "val", "seen", "kwargs"),
    [
        (squares(30), lambda: val_loader(squares(13, seed=1), batch_size=4), [4, 4], {}),
        (squares(32), lambda: val_loader(sampler=Share(16, 3), batch_size=4), [8, 2], OWN_SAMPLER),
        (squares(32), lambda: val_loader(sampler=Share(16, 0), batch_size=4), [8, 0], OWN_SAMPLER),
        (squares(32), lambda: val_loader(sampler=Share(0, 16), batch_size=4), [0, 8], OWN_SAMPLER),
        (squares(32), lambda: DataLoader(Stream(8, 0), 4), [4, 0], {}),
        (squares(32), lambda: DataLoader(Stream(0, 8), 4), [0, 4], {}),
    ],
    ids=["last batches", "fewer", "none in 1", "none in 0", "none in 1, no length", "none in 0, no length"],
)
def test_uneven_validation_does_not_hang_and_leaves_no_snapshot_out(tmp_path, train, val, seen, kwargs):
    callback = make_callback(metrics=("complexity", "infidelity"))
    found = fit_in_two(
        tmp_path,
        callback,
        Stepping(tmp_path),
        net=Quiet(),
        train=train_loader(train, batch_size=4),
        val=val(),
        num_sanity_val_steps=0,
        **kwargs,  # without a batch in one process Lightning's own check does not end
    )
    assert batches(tmp_path) == seen
    assert_same(found)
    assert [(s.epoch, s.when) for s in found[0].snapshots if s.when == "epoch"] == [(0, "epoch"), (1, "epoch")]
    assert all(one.epoch == 2 for one in found)


def test_training_data_without_indices_are_sampled_from_both(tmp_path):
    class Endless(IterableDataset):
        def __iter__(self):
            pictures, labels = squares(64, seed=2 + rank()).tensors
            return iter(list(zip(pictures, labels, strict=True)))

    callback = make_callback(every_n_train_steps=2, baseline_samples=40)
    found = fit_in_two(tmp_path, callback, train=DataLoader(Endless(), 8), limit_train_batches=8, max_epochs=1)
    assert_same(found)
    generations = [s.baselines for s in found[0].snapshots]
    assert generations[0] < 0  # what both saw so far
    assert generations[-1] == 1
    assert torch.equal(found[0].baselines["chosen"], found[1].baselines["chosen"])


# ---- failures in one process


def only_in(process, function, error, calls):
    """``function``, failing in one process at these calls."""
    count = {"calls": 0}

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        count["calls"] += 1
        if rank() == process and count["calls"] - 1 in calls:
            raise error
        return function(*args, **kwargs)

    return wrapped


@pytest.mark.parametrize("process", [0, 1])
def test_an_explanation_that_fails_in_one_process_is_left_out_in_both(tmp_path, monkeypatch, process):
    error = torch.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setattr(ExpectedGradCAM, "__call__", only_in(process, ExpectedGradCAM.__call__, error, {1}))
    found = fit_in_two(tmp_path, make_callback(strict=False), max_epochs=3)
    assert_same(found)
    assert [(s.epoch, s.when) for s in found[0].snapshots] == [(0, "start"), (1, "epoch"), (2, "epoch")]
    told = complaints(found[0].messages)
    assert len(told) == 1
    assert "OutOfMemoryError: CUDA out of memory" in told[0]
    assert ("failed in process 1" in told[0]) == (process == 1)


@pytest.mark.parametrize("process", [0, 1])
@pytest.mark.parametrize("on_images", [True, False])
def test_a_metric_that_fails_in_one_process_hangs_neither(tmp_path, process, on_images):
    class Broken(BrokenMetric):
        def _maybe(self, where):
            if rank() == process:
                super()._maybe(where)

    class OnImages(Broken):
        def update(self, images, attribution):
            super().update(attribution)

    broken = (OnImages if on_images else Broken)("update")
    found = fit_in_two(tmp_path, make_callback(strict=False, metrics=(broken, "complexity")))
    assert_same(found)
    assert all("complexity" in s.metrics for s in found[0].snapshots)
    if on_images or process == 0:  # what needs no images is the same everywhere, and the first process measures it
        assert all(not any("images" in key or "broken" in key for key in s.metrics) for s in found[0].snapshots)
        assert any("ArithmeticError: no update" in text for text in complaints(found[0].messages))


@pytest.mark.parametrize("process", [0, 1])
def test_images_that_one_process_cannot_read_come_from_the_other(tmp_path, process):
    class Partial(faulty.Outage):
        def __getitem__(self, index):
            return super().__getitem__(index) if rank() == process else self.dataset[index]

    train, val = Partial(squares(32)), Partial(squares(16, seed=1))
    switch = functools.partial(faulty.Switch, datasets=(train, val))
    callback = make_callback(strict=False)
    found = fit_in_two(
        tmp_path, switch(True), callback, train=train_loader(train), val=val_loader(val), after=[switch(False)]
    )
    assert_same(found)
    assert len(found[0].snapshots) == 3
    assert torch.equal(found[0].probe, found[1].probe)
    told = complaints(found[process].messages) if process == 0 else []
    assert len(told) == 2 * (process == 0)


def test_a_target_that_fails_in_one_process_hangs_neither(tmp_path):
    calls = {"count": 0}

    def target(output, labels):
        calls["count"] += 1
        if rank() == 1 and calls["count"] == 1:
            raise ValueError("not yet")
        return output.argmax(1)

    found = fit_in_two(tmp_path, make_callback(strict=False, target=target), max_epochs=3)
    assert_same(found)
    assert [s.epoch for s in found[0].snapshots if s.when == "epoch"] == [1, 2]
    assert any("failed in process 1. ValueError: not yet" in text for text in complaints(found[0].messages))


# ---- resuming


def test_two_processes_resumed_go_on_as_if_never_stopped(tmp_path):
    arguments = {"metrics": ("infidelity",), "every_n_train_steps": 3}
    whole = fit_in_two(tmp_path, make_callback(**arguments), train=train_loader(shuffle=False), max_epochs=4)
    checkpoint = ModelCheckpoint(tmp_path, filename="half")
    (tmp_path / "rank_0.pt").unlink()
    fit_in_two(
        tmp_path, make_callback(**arguments), checkpoint, train=train_loader(shuffle=False), max_epochs=2,
        enable_checkpointing=True,
    )  # fmt: skip
    path = str(tmp_path / "half.ckpt")
    resumed = fit_in_two(
        tmp_path, make_callback(**arguments), train=train_loader(shuffle=False), max_epochs=4, ckpt_path=path
    )
    assert_same(resumed)
    assert [s.key for s in resumed[0].snapshots] == [s.key for s in whole[0].snapshots]
    for one, other in zip(resumed[0].snapshots, whole[0].snapshots, strict=True):
        assert one.metrics == other.metrics
        assert torch.equal(one.attribution, other.attribution)


def test_resumed_within_the_first_epoch_the_sample_is_drawn_anew_from_a_whole_epoch(tmp_path):
    train = functools.partial(train_loader, numbered(64), shuffle=False)
    checkpoint = ModelCheckpoint(tmp_path, filename="early", every_n_train_steps=2, save_top_k=-1)
    fit_in_two(tmp_path, make_callback(), checkpoint, train=train(), max_steps=2, enable_checkpointing=True)
    found = fit_in_two(
        tmp_path, make_callback(num_baselines=4), train=train(), max_epochs=3, ckpt_path=str(tmp_path / "early.ckpt")
    )
    assert_same(found)
    assert [s.baselines for s in found[0].snapshots if s.when == "epoch"] == [0, 1, 1]


# ---- other strategies


def strategy_named(name, **attributes):
    return type(name, (SingleDeviceStrategy,), attributes)("cpu")


def start(strategy):
    ExpectedGradCAMCallback().setup(SimpleNamespace(strategy=strategy, callbacks=[]), Net(), "fit")


@pytest.mark.parametrize(
    "strategy",
    [
        FSDPStrategy(),
        type("MyFSDP", (FSDPStrategy,), {})(),
        strategy_named("DeepSpeedStrategy", zero_stage_3=True),
    ],
)
def test_a_strategy_that_it_would_wait_under_is_refused_in_setup_by_name(strategy):
    name = type(strategy).__name__
    with pytest.raises(
        MisconfigurationException, match=rf"does not run under {name}: .*fully_shard.* \(FSDP2\), or DDP"
    ):
        start(strategy)
    ExpectedGradCAMCallback().setup(SimpleNamespace(strategy=strategy, callbacks=[]), Net(), "test")


@pytest.mark.parametrize(
    "strategy",
    [strategy_named("DeepSpeedStrategy", zero_stage_3=False), strategy_named("ModelParallelStrategy")],
)
def test_strategies_that_leave_each_process_its_own_passes_are_not_refused(strategy):
    start(strategy)


def test_a_torch_that_cannot_undo_a_failed_pass_under_fsdp2_is_refused(monkeypatch):
    monkeypatch.delattr(FSDPModule, "reset_iter_state")
    with pytest.raises(MisconfigurationException, match="Update torch, use DDP, or remove"):
        start(strategy_named("ModelParallelStrategy"))


def test_deepspeeds_stages_are_told_apart():
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    for stage in (1, 2):
        start(DeepSpeedStrategy(stage=stage))
    with pytest.raises(MisconfigurationException, match="stage 3"):
        start(DeepSpeedStrategy(stage=3))
