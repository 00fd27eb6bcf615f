"""One table for all benchmarks."""

from __future__ import annotations

import platform

import pytest
import torch

from tests.benchmarks.measure import Table, device

TABLE = Table()


@pytest.fixture(scope="session")
def table():
    return TABLE


@pytest.fixture(autouse=True)
def two_threads():
    torch.set_num_threads(2)


def pytest_terminal_summary(terminalreporter):
    if TABLE.rows:
        kind = torch.cuda.get_device_name() if device().type == "cuda" else f"{platform.machine()}, two threads"
        terminalreporter.write_line(f"\n{kind}, torch {torch.__version__}\n\n{TABLE}\n")
