"""Everything that a fit can move, as fingerprints that are compared, and what a value takes of the memory."""

from __future__ import annotations

import hashlib
import random
import sys
from collections import deque
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parameter import is_lazy

from egcam_lightning.history.packed import PackedSnapshots


def fingerprint(value: Any, inside: tuple[int, ...] = ()) -> str:
    """A hash of every bit of ``value``: tensors, arrays, generators, modules, containers and objects of these.

    Of what has a life of its own (the Trainer, functions, graphs) only the type.
    """
    if id(value) in inside:
        return "itself"
    inside = (*inside, id(value))
    if isinstance(value, Tensor) and is_lazy(value):
        content = "uninitialised"
    elif isinstance(value, DTensor):  # spread over processes, all of which must ask
        return fingerprint(value.full_tensor(), inside)
    elif isinstance(value, Tensor):
        # A copy: memory that numpy has seen can never be given back, as FSDP2 does with what it has gathered.
        raw = value.detach().cpu().clone().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
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
    elif type(value).__module__.partition(".")[0] == "tests":
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
