"""It changes nothing: a fit with the callback and one without it are the same, bit for bit, at every step."""

from __future__ import annotations

import random
import warnings
import zipfile
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from torch.utils.data import Dataset, Sampler, Subset, SubsetRandomSampler
from torchmetrics import CatMetric, MeanMetric

from tests.support.fingerprints import Recorder, assert_same_training
from tests.support.fits import Net, fit, make_callback, make_trainer, train_loader, val_loader
from tests.support.pictures import squares


@dataclass(frozen=True)
class Case:
    """A way to train.

    Attributes:
        net: makes the module.
        when: the snapshots that are expected, as ``(epoch, kind)``.
        trainer: arguments of the Trainer.
        callback: arguments of our callback.
        train: makes the training loader.
        val: makes the validation loader.
        before: makes callbacks listed before ours.
        after: makes callbacks listed after it.
        warns: pattern of a warning that the callback must give.
    """

    net: Callable[[], Any] = Net
    when: tuple[tuple[int, str], ...] = ((0, "start"), (0, "epoch"), (1, "epoch"))
    trainer: dict[str, Any] = field(default_factory=dict)
    callback: dict[str, Any] = field(default_factory=dict)
    train: Callable[[], Any] = train_loader
    val: Callable[[], Any] = val_loader
    before: Callable[[], list[Callback]] = list
    after: Callable[[], list[Callback]] = list
    warns: str | None = None


# ---- networks that make it hard


class KeepsNormInEval(Net):
    """The usual way to freeze BatchNorm: ``train()`` leaves it in eval."""

    def train(self, mode=True):
        super().train(mode)
        self.features[1].eval()
        return self


def norm_in_eval_by_hand() -> Net:
    net = Net()
    net.features[1].eval()
    return net


def frozen_backbone() -> Net:
    net = Net()
    net.features.requires_grad_(False)
    return net


class AugmentsOnTheDevice(Net):
    """Augments training batches, and jitters validation batches, from the global generator."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, y = batch
        return (x + 0.1 * torch.randn_like(x) if self.trainer.training else x * (1 + 0.01 * random.random())), y


class Observed(Net):
    """Quantisation-aware: an observer and a fake quantiser whose buffers move in eval too."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver
        self.observer = MovingAverageMinMaxObserver()
        self.quantiser = FakeQuantize(MovingAverageMinMaxObserver)

    def forward(self, x):
        return self.head(self.quantiser(self.features(self.observer(x))))


class AlwaysDrops(Net):
    """Functional dropout that ignores ``training``, as a forgotten argument does."""

    def forward(self, x):
        return self.head(F.dropout(self.features(x), 0.2))


class KeepsState(Net):
    """Counts its calls and keeps its last features in attributes, and a running mean in a buffer that it replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.register_buffer("mean", torch.zeros(8), persistent=False)

    def forward(self, x):
        self.calls += 1
        self.last = self.features(x)
        self.mean = 0.9 * self.mean + 0.1 * self.last.detach().mean((0, 2, 3)) + 1e-3 * self.calls
        return self.head(self.last + self.mean.view(1, -1, 1, 1))


class Meter:
    """Counts and averages, in attributes that are slots."""

    __slots__ = ("count", "last", "total")

    def __init__(self) -> None:
        self.count, self.total = 0, torch.zeros(())

    def update(self, value):
        self.count += 1
        self.total += value
        self.last = value

    @property
    def mean(self):
        return self.total / max(1, self.count)


class Tracker:
    """An object of the user's own that holds others."""

    def __init__(self) -> None:
        self.meters = {"shift": Meter()}
        self.owner: Any = None
        self.generator = torch.Generator().manual_seed(3)


class Hoards(Net):
    """Keeps lists, tensors, arrays, metrics, meters and generators, and moves and uses them in every pass."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []
        self.recent = deque([0.0], maxlen=3)
        self.sizes: set[int] = set()
        self.running = {"shift": torch.zeros(8), "spread": [torch.zeros(())]}
        self.counts = np.zeros(3)
        self.notes = np.array([None, "text"], dtype=object)
        self.rng = np.random.default_rng(1)
        self.tracker = Tracker()
        self.tracker.owner = self
        self.mean_metric = MeanMetric()
        self.cat_metric = CatMetric()
        self.hidden = {"metric": MeanMetric()}
        self.teachers = [nn.BatchNorm2d(8)]  # in a list, so that it is no part of the module, and stays in training

    def forward(self, x):
        features = self.features(x)
        with torch.no_grad():
            shift = features.mean((0, 2, 3))
            self.teachers[0](features)
            self.running["shift"].mul_(0.9).add_(shift, alpha=0.1)
            self.running["spread"][0].data += 0.01
            self.seen.append(float(shift[0]))
            self.recent.append(float(shift[1]))
            self.sizes.add(len(self.seen))
            self.counts[len(self.seen) % 3] += 1
            self.notes[0] = len(self.seen)
            self.mean_metric(shift)
            self.cat_metric.update(shift[:2])
            self.hidden["metric"].update(shift)
            self.tracker.meters["shift"].update(shift[2])
            noise = torch.rand(8, generator=self.tracker.generator) + float(self.rng.random())
            moved = self.running["shift"] + self.running["spread"][0] + self.tracker.meters["shift"].mean
            moved = moved + self.mean_metric.compute() + self.hidden["metric"].compute() + self.recent[0]
            moved = moved + self.cat_metric.compute()[0] + float(self.counts[0]) + len(self.seen) + len(self.sizes)
            moved = moved + self.teachers[0].running_mean
        return self.head(features + 0.01 * (moved + noise).view(1, -1, 1, 1))


class WritesItsWeights(Net):
    """Bounds the norm of its weights in every pass, as networks for EEG do, in each of the ways there are."""

    def forward(self, x):
        first, second, head = self.features[0].weight, self.features[4].weight, self.head[4].weight
        bound = 0.3 + 0.05 * float(x.abs().mean())
        first.data = torch.renorm(first.data, 2, 0, bound)
        second.data.renorm_(2, 0, bound)
        with torch.no_grad():
            head.renorm_(2, 0, bound)
        return super().forward(x)


class LogsInForward(Net):
    """Logs what it computes, in each of the ways there are."""

    def forward(self, x):
        features = self.features(x)
        norm = features.detach().norm()
        if self._trainer is not None and not self.trainer.sanity_checking:
            self.log("norm", norm, on_step=False, on_epoch=True, prog_bar=True)
            self.log_dict({"norm_twice": 2 * norm})
        return self.head(features)


class Lazy(Net):
    """Finds its sizes, and draws its weights, in the first pass."""

    def __init__(self) -> None:
        super().__init__()
        self.features[4] = nn.LazyConv2d(8, 3, padding=1)
        self.features.append(nn.LazyBatchNorm2d())
        self.head[4] = nn.LazyLinear(4)


class Augmentation(nn.Module):
    """Noise in training, and counters that move in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.sums = 0, {"mean": 0.0}
        self.state = torch.zeros(3)
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.sums["mean"] += float(x.mean())
        self.state += 1
        self.mean = 0.9 * self.mean + 0.1 * x.mean((0, 2, 3))
        x = x + 0.01 * (self.mean + self.state).view(1, -1, 1, 1) + 0.01 * self.calls + self.sums["mean"]
        return x + 0.1 * torch.randn_like(x) if self.training else x


class Scripted(Net):
    """An augmentation and a head that are scripted, around features that are not."""

    def __init__(self) -> None:
        super().__init__(inplace=False)
        self.augmentation = torch.jit.script(Augmentation())
        self.head = torch.jit.script(self.head)

    def forward(self, x):
        return super().forward(self.augmentation(x))


class Queue(Net):
    """Enqueues its keys in every pass, as momentum contrast does, into a buffer of several pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", F.normalize(torch.randn(8, 2**18, generator=torch.Generator().manual_seed(0))))
        self.register_buffer("place", torch.zeros(1, dtype=torch.long))

    def forward(self, x):
        features = self.features(x)
        keys, place = features.detach().mean((2, 3)), int(self.place)
        self.queue[:, place : place + len(x)] = keys.T
        self.place[0] = (place + len(x)) % 2**17
        return self.head(features + self.queue[:, :64].mean(1).view(1, -1, 1, 1))


class DrawsItsValidationData(Net):
    """Splits its data by the global generators, each time its loaders are asked for."""

    def train_dataloader(self):
        return train_loader()

    def val_dataloader(self):
        order = torch.randperm(16)
        random.random(), np.random.rand()  # noqa: NPY002
        return val_loader(Subset(squares(16, seed=1), order.tolist()))


class TwoOptimizers(Net):
    """Manual optimization: one optimizer for the body, one for the head."""

    def __init__(self) -> None:
        super().__init__(dropout=0.2)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(cross_entropy(self(batch[0]), batch[1]))
            optimizer.step()

    def configure_optimizers(self):
        return [
            torch.optim.AdamW(self.features.parameters(), 1e-2),
            torch.optim.SGD(self.head.parameters(), 0.05, momentum=0.9),
        ]


class Checkpointed(Net):
    """Activation checkpointing around the features, dropout inside."""

    def __init__(self, use_reentrant: bool) -> None:
        super().__init__(dropout=0.2, inplace=False)
        self.use_reentrant = use_reentrant
        self.features.append(nn.Dropout(0.2))

    def forward(self, x):
        # The reentrant kind gives no gradient unless an input requires one.
        x = x.clone().requires_grad_() if torch.is_grad_enabled() and not x.requires_grad else x
        features = checkpoint(self.features, x, use_reentrant=self.use_reentrant)
        return checkpoint(self.head, features, use_reentrant=self.use_reentrant)


class BreaksInTheMiddle(Net):
    """In the second epoch an explanation moves everything it can, then raises, with hooks on and a graph half built."""

    def forward(self, x):
        logits = self.head(self.features(x))
        if not self.training and logits.requires_grad and self.trainer.current_epoch == 1:
            random.random(), np.random.rand(), torch.rand(3)  # noqa: NPY002
            self.train()
            self.features(x)
            for parameter in self.parameters():
                parameter.grad = torch.ones_like(parameter)
            raise RuntimeError("broken in the middle")
        return logits


class CompiledInPlace(Net):
    def __init__(self, backend: str) -> None:
        super().__init__(dropout=0.2, inplace=False)
        self.compile(backend=backend)


class CompiledPart(Net):
    def __init__(self, backend: str) -> None:
        super().__init__(dropout=0.2, inplace=False)
        self.features = torch.compile(self.features, backend=backend)


def compiled_whole(backend: str) -> Any:
    return torch.compile(Net(dropout=0.2, inplace=False), backend=backend)


# ---- data


class AugmentedByGlobals(Dataset):
    """Samples that are flipped, shifted and noised by the three global generators."""

    def __init__(self, count: int, seed: int) -> None:
        self.data = squares(count, seed)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        x, y = self.data[index]
        x = x.flip(-1) if random.random() < 0.5 else x
        return x + float(np.random.rand()) * 0.1 + 0.1 * torch.randn_like(x), y  # noqa: NPY002


class OpensItsFile(Dataset):
    """Raw samples behind a handle that the first one opens, so that each worker has its own."""

    def __init__(self, path: Path, count: int, seed: int) -> None:
        self.path, self.labels, self.file = path, squares(count, seed).tensors[1], None
        path.write_bytes(squares(count, seed).tensors[0].numpy().tobytes())

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        self.file = self.file or self.path.open("rb")
        size = 3 * 16 * 16 * 4
        self.file.seek(index * size)
        return torch.frombuffer(bytearray(self.file.read(size)), dtype=torch.float32).view(3, 16, 16), self.labels[
            index
        ]


class OpensItsZip(OpensItsFile):
    """The same in an archive, which a shared handle breaks outright."""

    def __init__(self, path: Path, count: int, seed: int) -> None:
        super().__init__(path, count, seed)
        with zipfile.ZipFile(path, "w") as archive:
            for index, (picture, _) in enumerate(squares(count, seed)):
                archive.writestr(str(index), picture.numpy().tobytes())

    def __getitem__(self, index):
        self.file = self.file or zipfile.ZipFile(self.path)
        content = bytearray(self.file.read(str(index)))
        return torch.frombuffer(content, dtype=torch.float32).view(3, 16, 16), self.labels[index]


class DrawsFromItsOwn(Dataset):
    """Noised by generators that the data set holds."""

    def __init__(self, count: int, seed: int) -> None:
        self.data = squares(count, seed)
        self.numpy, self.python, self.torch = np.random.default_rng(0), random.Random(0), torch.Generator()

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        x, y = self.data[index]
        noise = 0.1 * torch.randn(x.shape, generator=self.torch) + self.numpy.normal() + self.python.random()
        return x + noise, y


class RemembersItsPlace(Sampler):
    """A sampler with a generator and a count of its own."""

    def __init__(self, count: int) -> None:
        self.count, self.epoch, self.generator = count, 0, torch.Generator()

    def __len__(self):
        return self.count

    def __iter__(self):
        self.epoch += 1
        order = torch.randperm(self.count, generator=self.generator).tolist()
        return iter(order[self.epoch :] + order[: self.epoch])


def augmented_loaders(**kwargs: Any) -> dict[str, Any]:
    return {
        "train": lambda: train_loader(AugmentedByGlobals(32, 0), **kwargs),
        "val": lambda: val_loader(AugmentedByGlobals(16, 1), **kwargs),
    }


def ema() -> list[Callback]:
    return [EMAWeightAveraging(decay=0.5)]


CASES = {
    "plain": Case(lambda: Net(inplace=False)),
    "accumulation of 3": Case(trainer={"accumulate_grad_batches": 3}),
    "gradient clipping": Case(trainer={"gradient_clip_val": 0.1}),
    "BatchNorm kept in eval by train()": Case(KeepsNormInEval),
    "BatchNorm put in eval by hand": Case(norm_in_eval_by_hand),
    "frozen backbone": Case(frozen_backbone, callback={"target_layer": "features.3"}),
    "in-place ReLU": Case(lambda: Net(inplace=True), callback={"target_layer": "features.1"}),
    "dropout": Case(lambda: Net(dropout=0.5)),
    "augmentation on the device": Case(AugmentsOnTheDevice),
    "augmentation, 0 workers": Case(**augmented_loaders()),
    "augmentation, 2 workers": Case(**augmented_loaders(num_workers=2)),
    "augmentation, 2 persistent workers": Case(**augmented_loaders(num_workers=2, persistent_workers=True)),
    "generators of the data set's own": Case(
        train=lambda: train_loader(DrawsFromItsOwn(32, 0)), val=lambda: val_loader(DrawsFromItsOwn(16, 1))
    ),
    "a sampler with a state": Case(
        train=lambda: train_loader(sampler=RemembersItsPlace(32), shuffle=False),
        val=lambda: val_loader(sampler=RemembersItsPlace(16)),
    ),
    "bf16-mixed": Case(lambda: Net(dropout=0.2), trainer={"precision": "bf16-mixed"}),
    "bf16-true": Case(lambda: Net(dropout=0.2), trainer={"precision": "bf16-true"}),
    "64-true": Case(trainer={"precision": "64-true"}),
    # `Trainer(accelerator="cpu", precision="16-mixed")` silently becomes bf16-mixed; the plugin itself does run here,
    # with float16 and a gradient scaler. On a GPU see below.
    "16-mixed": Case(trainer={"plugins": lambda: [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))]}),
    "torch.compile of the module": Case(lambda: compiled_whole("aot_eager")),
    "torch.compile of a part": Case(lambda: CompiledPart("aot_eager")),
    "torch.compile in place": Case(lambda: CompiledInPlace("aot_eager")),
    "quantisation-aware observers": Case(Observed),
    "functional dropout": Case(AlwaysDrops),
    "attributes and replaced buffers": Case(KeepsState),
    "lists, arrays, metrics, meters and generators in forward": Case(Hoards),
    "weights that forward writes": Case(WritesItsWeights),
    "self.log in forward": Case(
        LogsInForward,
        callback={"every_n_train_steps": 1},
        when=((0, "start"), *((n, kind) for n in (0, 1) for kind in ("step", "step", "step", "epoch"))),
    ),
    "lazy modules": Case(Lazy, trainer={"num_sanity_val_steps": 0}, when=((0, "epoch"), (1, "epoch"))),
    "lazy modules, no validation": Case(
        Lazy,
        val=tuple,
        callback={"every_n_train_steps": 3},
        when=((0, "step"), (0, "epoch"), (1, "step"), (1, "epoch")),
    ),
    "lazy modules, initialised by the sanity check": Case(Lazy),
    "scripted augmentation and head": Case(Scripted),
    "a large buffer that moves": Case(Queue),
    "manual optimization, two optimizers": Case(TwoOptimizers),
    "WeightAveraging listed before": Case(lambda: Net(dropout=0.2), before=ema),
    "WeightAveraging listed after": Case(lambda: Net(dropout=0.2), after=ema),
    "activation checkpointing": Case(lambda: Checkpointed(use_reentrant=False)),
    "reentrant activation checkpointing": Case(lambda: Checkpointed(use_reentrant=True)),
    "a snapshot that raises in the middle": Case(
        BreaksInTheMiddle,
        when=((0, "start"), (0, "epoch"), (2, "epoch")),
        trainer={"max_epochs": 3},
        callback={"strict": False},
        warns="the snapshot failed, and training goes on. RuntimeError: broken in the middle",
    ),
    "mid-epoch validation": Case(
        trainer={"val_check_interval": 2},
        when=((0, "start"), (0, "epoch"), (0, "epoch"), (1, "epoch"), (1, "epoch")),
    ),
    # Windows of 3 in epochs of 7 batches: a step behind batches 3, 6 and 7, validation behind batch 4, in a window.
    "every_n_train_steps and validation inside accumulation windows": Case(
        trainer={"accumulate_grad_batches": 3, "val_check_interval": 4},
        callback={"every_n_train_steps": 1},
        train=lambda: train_loader(squares(56)),
        when=((0, "start"), *((n, kind) for n in (0, 1) for kind in ("step", "epoch", "step", "step"))),
    ),
    "no validation": Case(
        val=tuple, train=lambda: train_loader(AugmentedByGlobals(32, 0)), callback={"every_n_train_steps": 3}, when=(
            (0, "start"), (0, "step"), (0, "epoch"), (1, "step"), (1, "epoch"),
        ),
    ),
    "no sanity check, validation every second epoch": Case(
        trainer={"num_sanity_val_steps": 0, "check_val_every_n_epoch": 2, "max_epochs": 4},
        when=((0, "start"), (1, "epoch"), (3, "epoch")),
        **augmented_loaders(),
    ),
    # The Trainer asks for these loaders late, and then they draw.
    "a val_dataloader() that draws, first asked for in the second epoch": Case(
        DrawsItsValidationData,
        trainer={"num_sanity_val_steps": 0, "check_val_every_n_epoch": 2, "max_epochs": 4},
        when=((0, "start"), (1, "epoch"), (3, "epoch")),
    ),
    "loaders that are loaded anew each epoch": Case(
        DrawsItsValidationData,
        trainer={"reload_dataloaders_every_n_epochs": 1},
    ),
    "another explained class, score and metrics": Case(
        lambda: Net(dropout=0.2),
        callback={"target": "predicted", "score": "margin", "metrics": ("max_sensitivity", "infidelity")},
    ),
}  # fmt: skip
INDUCTOR = {
    "torch.compile of the module": Case(lambda: compiled_whole("inductor")),
    "torch.compile of a part": Case(lambda: CompiledPart("inductor")),
    "torch.compile in place": Case(lambda: CompiledInPlace("inductor")),
}
ON_GPU = {
    "plain": {},
    "16-mixed": {"precision": "16-mixed"},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "bf16-true": {"precision": "bf16-true"},
    "16-true": {"precision": "16-true"},
}


def compare(case: Case, tmp_path: Any) -> None:
    """Fit without and with the callback, and compare everything at every step."""

    def run(*ours: Callback) -> Recorder:
        torch._dynamo.reset()  # what one fit has compiled must not serve the other
        recorder = Recorder()
        trainer = {key: value() if callable(value) else value for key, value in case.trainer.items()}
        torch.manual_seed(0)
        callbacks = [*case.before(), *ours, *case.after(), recorder]
        net = case.net()
        if isinstance(net, DrawsItsValidationData):
            seed_everything(0, verbose=False)
            make_trainer(tmp_path, *callbacks, **trainer).fit(net)
        else:
            fit(tmp_path, *callbacks, net=net, train=case.train(), val=case.val(), **trainer)
        return recorder

    without = run()
    callback = make_callback(**{"metrics": "default", **case.callback})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with_it = run(callback)
    assert_same_training(with_it, without)
    # Trained at all, and watched: a comparison of nothing with nothing would pass as well.
    (_, first), (_, last) = without.states[0], without.states[-1]
    assert any(first[name] != last[name] for name in first if name.startswith("weight"))
    assert [(s.epoch, s.when) for s in callback.history] == list(case.when)
    assert all(bool(torch.isfinite(s.attribution).all()) for s in callback.history)
    assert any(bool(s.attribution.any()) for s in callback.history)
    assert {"completeness_gap", "infidelity"} <= set(callback.history[-1].metrics)
    if case.warns is not None:
        assert sum(case.warns in str(warning.message) for warning in caught) == 1


class ToLoggersInForward(Net):
    """Speaks to its logger itself."""

    def forward(self, x):
        if self._trainer is not None:
            self.logger.log_metrics({"brightness": float(x.mean())}, step=self.global_step)
        return super().forward(x)


def test_what_forward_says_to_loggers_is_what_training_and_validation_say(tmp_path):
    class Listener(CSVLogger):
        def __init__(self):
            super().__init__(tmp_path)
            self.heard = []

        def log_metrics(self, metrics, step=None):
            self.heard += [(value, step) for key, value in metrics.items() if key == "brightness"]

    loggers = [Listener(), Listener()]
    fit(tmp_path, net=ToLoggersInForward(), logger=loggers[0])
    callback = make_callback(metrics="default", every_n_train_steps=1)
    trainer, net = fit(tmp_path, callback, net=ToLoggersInForward(), logger=loggers[1])
    assert len(callback.history) == 9
    assert loggers[0].heard == loggers[1].heard
    assert trainer.loggers == [loggers[1]]
    assert "log" not in vars(net)


@pytest.mark.real("its parameters cannot be lazy")
def test_a_lazy_module_is_told_of_once(tmp_path, caplog):
    callback = make_callback()
    with caplog.at_level("INFO", "lightning.pytorch"):
        fit(tmp_path, callback, net=Lazy(), num_sanity_val_steps=0)
    told = [record.message for record in caplog.records if "takes no snapshot before training" in record.message]
    assert len(told) == 1
    assert "'features.4.weight' has no values" in told[0]
    assert [(s.epoch, s.when) for s in callback.history] == [(0, "epoch"), (1, "epoch")]


_REAL = pytest.mark.real("it knows neither lazy nor scripted modules, nor buffers that a forward pass replaces")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=_REAL) if n.startswith(("lazy", "scripted", "lists, arrays")) else n for n in CASES],
)
@pytest.mark.filterwarnings("ignore")
def test_training_is_the_same_bit_for_bit(name, tmp_path):
    compare(CASES[name], tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [OpensItsFile, OpensItsZip])
@pytest.mark.filterwarnings("ignore")
def test_training_is_the_same_bit_for_bit_where_samples_are_in_a_file(kind, workers, tmp_path):
    """One data set, split by samplers, behind both loaders; its first sample opens the file."""

    def loader(part: range) -> Callable[[], Any]:
        return lambda: val_loader(data[-1], sampler=SubsetRandomSampler(part), num_workers=workers)

    data: list[Dataset] = []

    def train() -> Any:
        data.append(kind(tmp_path / "samples", 48, 0))
        return loader(range(32))()

    compare(Case(train=train, val=loader(range(32, 48)), trainer={"num_sanity_val_steps": 0}), tmp_path)
    if workers:  # each opens its own: one handle for all would read wrong samples whenever two read at once
        assert [each.file for each in data] == [None, None]


@pytest.mark.slow
@pytest.mark.parametrize("name", INDUCTOR)
@pytest.mark.filterwarnings("ignore")
def test_training_is_the_same_bit_for_bit_with_inductor(name, tmp_path):
    compare(INDUCTOR[name], tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: there 16-mixed is float16 for real")
@pytest.mark.parametrize("name", ON_GPU)
@pytest.mark.filterwarnings("ignore")
def test_training_is_the_same_bit_for_bit_on_a_gpu(name, tmp_path, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        # Sums on a GPU may come out differently each time; only then can two fits be compared at all.
        case = Case(
            lambda: Net(dropout=0.2),
            trainer={"accelerator": "gpu", "devices": 1, "deterministic": True, **ON_GPU[name]},
        )
        compare(case, tmp_path)
    finally:
        torch.use_deterministic_algorithms(False)
