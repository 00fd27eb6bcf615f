"""Things that break on purpose, and what a fit said about it."""

from __future__ import annotations

import errno
import os
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, Logger
from torch.utils.data import Dataset
from torchmetrics import Metric

from tests.support.fits import Net


class Flaky:
    """Wraps a function, and raises instead of calling it where ``broken(number of the call)`` says so."""

    def __init__(self, function: Callable[..., Any], error: Exception, broken: Callable[[int], bool]) -> None:
        self.function, self.error, self.broken = function, error, broken
        self.calls = self.failures = 0

    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else lambda *args, **kwargs: self(instance, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.broken(self.calls - 1):
            self.failures += 1
            raise self.error
        return self.function(*args, **kwargs)


def at(*calls: int) -> Callable[[int], bool]:
    """Breaks at these calls, counted from 0."""
    return lambda call: call in calls


def sometimes(seed: int, share: float = 0.3) -> Callable[[int], bool]:
    """Breaks at random, the same each time."""
    generator = random.Random(seed)
    return lambda call: generator.random() < share


def full_disk(path: Any = None) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def read_only() -> OSError:
    return OSError(errno.EROFS, os.strerror(errno.EROFS), "folder")


class PickyLogger(CSVLogger):
    """Fails on what the callback logs by itself, and takes what Lightning logs."""

    error: Exception = RuntimeError("the service is down")

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if all(key == "epoch" or key.startswith("egcam/") for key in metrics) and len(metrics) > 1:
            raise self.error
        super().log_metrics(metrics, step)


class SilentLogger(Logger):
    """Answers every question with None."""

    name = version = save_dir = experiment = None

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        return None

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        return None


class PictureLogger(CSVLogger):
    """A logger whose sink a test brings along."""


class BrokenMetric(Metric):
    """Fails in one of its methods."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")

    def _maybe(self, where: str) -> None:
        if self.where == where:
            raise ArithmeticError(f"no {where}")

    def update(self, attribution: torch.Tensor) -> None:
        self._maybe("update")
        self.total += attribution.sum()

    def compute(self) -> torch.Tensor:
        self._maybe("compute")
        return self.total

    def reset(self) -> None:
        self._maybe("reset")
        super().reset()


class SickNet(Net):
    """Gives ``value`` instead of logits, in eval mode and in the given epochs."""

    def __init__(self, value: float, epochs: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.value, self.epochs = value, epochs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = super().forward(x)
        sick = not self.training and not self.trainer.sanity_checking and self.trainer.current_epoch in self.epochs
        return output * self.value if sick else output


class Outage(Dataset):
    """A data set that cannot be read while ``down``."""

    down = False

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        if self.down:
            raise FileNotFoundError("the network drive is gone")
        return self.dataset[index]


class Switch(Callback):
    """Sets ``down`` of data sets when a fit starts."""

    def __init__(self, down: bool, datasets: Sequence[Outage]) -> None:
        self.down, self.datasets = down, datasets

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        for dataset in self.datasets:
            dataset.down = self.down


@contextmanager
def heard() -> Iterator[list[str]]:
    """What the callback warned of inside the body."""
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield messages
    messages += [str(warning.message) for warning in caught]


def complaints(messages: list[str]) -> list[str]:
    """Those that tell of a fault."""
    return [text for text in messages if "training goes on" in text or "NaN or infinity" in text]


def in_folder(function: Callable[..., Any], folder: Path, error: Exception, broken: Callable[[], bool]) -> Any:
    """``function(path, ...)``, which fails on paths inside ``folder`` while ``broken()``."""

    def wrapped(path: Path, *args: Any, **kwargs: Any) -> Any:
        if broken() and folder in Path(path).parents:
            raise error
        return function(path, *args, **kwargs)

    return wrapped
