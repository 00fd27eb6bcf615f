"""One thread for all tests, the same random numbers every time, and the device that they run on."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from tests.support import devices

torch.set_num_threads(1)  # some tests fork, and a forked process cannot use the thread pool of its parent
torch.manual_seed(0)  # what a test module draws when it is imported

_ALONE = ("gpu", "benchmark")
_FORKING = ("tests.support.parallel", "tests.support.killed")
_OF_TENSORS = ("architectures", "compat", "explain", "findings", "metrics")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--accelerator",
        choices=devices.CHOICES,
        default="cpu",
        help="what tests run on that do not need a CPU; 'pretended' finds tensors on the wrong device without one",
    )


def pytest_configure(config: pytest.Config) -> None:
    try:
        devices.choose(config.getoption("--accelerator"))
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two for all tests; of a few the start would cost more, and a device or a benchmark bears nothing beside it."""
    alone = config.option.accelerator != "cpu" or config.option.markexpr in _ALONE
    return 0 if alone or config.args_source is not pytest.Config.ArgsSource.TESTPATHS else min(2, os.cpu_count() or 1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wrong = {"cpu": (), "pretended": ("cpu", "real")}.get(devices.chosen().type, ("cpu",))
    for item in items:
        for mark in (mark for name in wrong for mark in item.iter_markers(name)):
            item.add_marker(pytest.mark.skip(reason=f"not on this device: {mark.args[0]}"))
    # First those that fork: once autograd has threads of its own, as code compiled by inductor makes it have, a forked
    # process can take no gradient.
    items.sort(key=lambda item: not _forks(getattr(item, "module", None)))


def _forks(module: Any) -> bool:
    named = vars(module).values() if module is not None else ()
    return any(getattr(one, "__module__", None) in _FORKING for one in named)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    with _made_on_the_device(collector):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    with _made_on_the_device(item):
        return (yield)


def _made_on_the_device(node: pytest.Item | pytest.Collector) -> AbstractContextManager[Any]:
    """What tests of tensors make lies on the device; a Trainer brings its data there itself."""
    moves = devices.chosen().type != "cpu" and node.path.parent.name in _OF_TENSORS
    return devices.MadeOn(devices.chosen()) if moves else nullcontext()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """No test depends on what was drawn before it; without this a network drawn badly fails one run in many."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global state is what is seeded
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device that tests run on."""
    return devices.chosen()
