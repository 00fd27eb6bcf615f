"""What the tests of the contract share: a tiny network, tiny data, a short fit, and everything that a fit can move."""

from __future__ import annotations

import hashlib
import random
import sys
from collections import deque
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, Dataset, TensorDataset

from egcam_lightning import ExpectedGradCAMCallback
from egcam_lightning.history.packed import PackedSnapshots

SIZE = 16  # of an image's side
CLASSES = 4


def images(count: int, seed: int = 0, size: int = SIZE) -> TensorDataset:
    """Noise with a bright square in the quadrant of its class: ``(count, 3, size, size)`` and ``(count,)``."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    pictures = torch.randn(count, 3, size, size, generator=generator) * 0.3
    half, quarter = size // 2, size // 4
    for picture, label in zip(pictures, labels.tolist(), strict=True):
        row, column = label // 2 * half, label % 2 * half
        picture[:, row : row + quarter, column : column + quarter] += 2.0
    return TensorDataset(pictures, labels)


def train_loader(dataset: Dataset | None = None, batch_size: int = 8, **kwargs: Any) -> DataLoader:
    """Four batches of 8, shuffled by the global generator as people do."""
    return DataLoader(dataset or images(32), batch_size, **{"shuffle": True, **kwargs})


def val_loader(dataset: Dataset | None = None, batch_size: int = 8, **kwargs: Any) -> DataLoader:
    """Two batches of 8."""
    return DataLoader(dataset or images(16, seed=1), batch_size, **kwargs)


class Net(LightningModule):
    """A small network with everything on board: normalisation, in-place ReLU, dropout, momentum and a schedule."""

    def __init__(self, dropout: float = 0.0, inplace: bool = True) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1),
        )
        self.head = nn.Sequential(
            nn.ReLU(inplace), nn.AvgPool2d(4), nn.Flatten(), nn.Dropout(dropout), nn.Linear(32, CLASSES)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", cross_entropy(self(batch[0]), batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)}


def make_callback(**kwargs: Any) -> ExpectedGradCAMCallback:
    """The callback, small, raising whatever goes wrong, without a budget; ``metrics=()`` unless told otherwise."""
    defaults = {"num_images": 4, "num_samples": 2, "num_baselines": 4, "metrics": (), "max_overhead": None}
    return ExpectedGradCAMCallback(**{**defaults, "strict": True, **kwargs})


def make_trainer(tmp_path: Any, *callbacks: Callback, **kwargs: Any) -> Trainer:
    """A quiet Trainer of two epochs on the CPU, with a CSVLogger, without checkpoints."""
    defaults = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "default_root_dir": tmp_path,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "log_every_n_steps": 1,
    }
    if "logger" not in kwargs and not kwargs.get("barebones"):
        defaults["logger"] = CSVLogger(tmp_path)
    return Trainer(callbacks=list(callbacks), **{**defaults, **kwargs})


def fit(
    tmp_path: Any,
    *callbacks: Callback,
    net: LightningModule | None = None,
    train: Any = None,
    val: Any = None,
    ckpt_path: str | None = None,
    **kwargs: Any,
) -> tuple[Trainer, LightningModule]:
    """Train for two epochs of four steps; ``kwargs`` go to the Trainer."""
    seed_everything(0, verbose=False)
    net = Net() if net is None else net
    trainer = make_trainer(tmp_path, *callbacks, **kwargs)
    trainer.fit(
        net, train_loader() if train is None else train, val_loader() if val is None else val, ckpt_path=ckpt_path
    )
    return trainer, net


def fingerprint(value: Any, inside: tuple[int, ...] = ()) -> str:
    """A hash of every bit of ``value``: tensors, arrays, generators, modules, containers and objects of these.

    Of what has a life of its own (the Trainer, functions, graphs) only the type.
    """
    if id(value) in inside:
        return "itself"
    inside = (*inside, id(value))
    if isinstance(value, Tensor) and is_lazy(value):
        content = "uninitialised"
    elif isinstance(value, Tensor):
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        content = f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(raw).hexdigest()}"
    elif isinstance(value, np.ndarray):
        content = f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    elif isinstance(value, torch.Generator):
        content = fingerprint(value.get_state())
    elif isinstance(value, np.random.Generator):
        content = repr(value.bit_generator.state)
    elif isinstance(value, dict):
        content = repr([(repr(key), fingerprint(item, inside)) for key, item in value.items()])
    elif isinstance(value, (list, tuple, deque)):
        content = repr([fingerprint(item, inside) for item in value])
    elif isinstance(value, nn.Module) and not isinstance(value, LightningModule):
        content = fingerprint({name: vars(part) for name, part in value.named_modules()}, inside)
    elif isinstance(value, (set, int, float, complex, str, bytes, torch.dtype, type(None))):
        content = repr(value)
    elif type(value).__module__.partition(".")[0] in ("contract", "test_changes_nothing"):
        fields = {name: getattr(value, name) for name in getattr(value, "__slots__", ()) if hasattr(value, name)}
        content = fingerprint([fields, getattr(value, "__dict__", None)], inside)
    else:
        content = str(type(value))
    return hashlib.sha256(content.encode()).hexdigest()


def memory_of(value: Any, seen: set[int] | None = None) -> int:
    """Bytes of a value and of all that it refers to; of a tensor with all that torch keeps beside its content."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, Tensor):
        return 500 + value.untyped_storage().nbytes()
    values = vars(value) if isinstance(value, PackedSnapshots) else value
    parts = [*values, *values.values()] if isinstance(values, dict) else values
    parts = parts if isinstance(parts, (list, tuple)) else ()
    return sys.getsizeof(values) + sum(memory_of(part, seen) for part in parts)


def random_states() -> dict[str, str]:
    """Fingerprints of every global random generator."""
    states = {
        "random: python": fingerprint(random.getstate()),
        "random: numpy": fingerprint(np.random.get_state()),  # noqa: NPY002
        "random: torch": fingerprint(torch.get_rng_state()),
    }
    if torch.cuda.is_available():
        states["random: cuda"] = fingerprint(torch.cuda.get_rng_state_all())
    return states


def module_state(module: nn.Module) -> dict[str, str]:
    """Fingerprints of weights, gradients, ``requires_grad``, buffers, flags, attributes and hooks, by name."""
    state: dict[str, Any] = {}
    for name, parameter in module.named_parameters():
        state[f"weight: {name}"] = fingerprint(parameter)
        state[f"grad: {name}"] = fingerprint(parameter.grad)
        state[f"requires_grad: {name}"] = str(parameter.requires_grad)
        hooks = [getattr(parameter, kind, None) for kind in ("_backward_hooks", "_post_accumulate_grad_hooks")]
        state[f"hooks: {name}"] = str([len(found or ()) for found in hooks])
    for name, buffer in module.named_buffers():
        state[f"buffer: {name}"] = fingerprint(buffer)
    usual = vars(LightningModule()).keys()
    for name, part in module.named_modules():
        state[f"training: {name}"] = str(part.training)
        for key, value in vars(part).items():
            if key not in usual and not key.startswith("_torchdynamo"):
                state[f"attribute: {name}.{key}"] = fingerprint(value)
        if isinstance(part, torch.jit.RecursiveScriptModule):
            for key in part._concrete_type.get_attributes():
                state[f"attribute: {name}.{key}"] = fingerprint(part._c.getattr(key))
        hooks = {key: value for key, value in vars(part).items() if key.endswith("_hooks") and hasattr(value, "values")}
        state[f"hooks: {name}"] = str({key: [_name(hook) for hook in value.values()] for key, value in hooks.items()})
    return state


def _name(hook: Any) -> str:
    return getattr(hook, "__qualname__", type(hook).__qualname__)


def training_state(trainer: Trainer, module: LightningModule) -> dict[str, str]:
    """Fingerprints of everything that a fit carries from one step to the next, by name."""
    state = {**module_state(module), **random_states()}
    for index, optimizer in enumerate(trainer.optimizers):
        state[f"optimizer {index}"] = fingerprint(optimizer.state_dict())
    for index, config in enumerate(trainer.lr_scheduler_configs):
        state[f"scheduler {index}"] = fingerprint(config.scheduler.state_dict())
    state["precision"] = fingerprint(trainer.precision_plugin.state_dict())
    for kind in ("callback_metrics", "logged_metrics", "progress_bar_metrics"):
        values = {key: value for key, value in getattr(trainer, kind).items() if not key.startswith("egcam")}
        state[kind] = fingerprint(values)
    state["steps"] = str((trainer.current_epoch, trainer.global_step))
    return state


class Recorder(Callback):
    """Records the training state at every batch, validation and epoch: list it last, behind who may move it."""

    def __init__(self) -> None:
        self.states: list[tuple[str, dict[str, str]]] = []

    def _run_state(self, trainer: Trainer, module: LightningModule, where: str) -> None:
        place = f"{where} of epoch {trainer.current_epoch}, step {trainer.global_step}"
        self.states.append((place, training_state(trainer, module)))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._run_state(trainer, pl_module, "start")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._run_state(trainer, pl_module, "batch end")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._run_state(trainer, pl_module, "validation end")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._run_state(trainer, pl_module, "epoch end")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._run_state(trainer, pl_module, "train end")


def assert_same_training(with_it: Recorder, without: Recorder) -> None:
    """Fail with the first place, and everything there, in which two fits differ."""
    assert [place for place, _ in with_it.states] == [place for place, _ in without.states]
    for (place, now), (_, then) in zip(with_it.states, without.states, strict=True):
        differing = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
        assert not differing, f"At the {place} these differ: {differing}"
