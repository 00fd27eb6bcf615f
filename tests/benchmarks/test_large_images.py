"""Memory, disk and checkpoint on large images and grids, in processes of their own."""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest
import torch

from tests.benchmarks.large import CASES, Taken, measure

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]

# MB; those of a CPU. What does not depend on the number of images is most of it.
PEAKS = dict(zip(CASES, (700, 400, 450, 700), strict=True))
GRIDS = dict(zip(CASES, ((64, 64), (256, 256), (16, 16), (96, 96, 96)), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_a_snapshot_takes_bounded_memory(name: str, table: Any) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        taken: Taken = pool.apply(measure, (name,))
    maps = 2 * CASES[name].count * torch.Size(GRIDS[name]).numel()  # two bytes a cell
    work = f"{name}, {CASES[name].count} images, 8 draws of 8 baselines, default metrics"
    table.add("added peak memory of a snapshot, MB", work, taken.peak / 2**20, PEAKS[name])
    table.add("files of a snapshot's maps, of 2 bytes a cell", work, taken.disk / maps, 1.1)
    table.add(
        "a checkpoint's history of one snapshot, of its maps and 8 kB", work, taken.checkpoint / (maps + 8192), 1.1
    )
