"""A history takes little memory and little of a checkpoint, whatever the grid, and gives back what it can."""

from __future__ import annotations

import io
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

from egcam_lightning.history.codec import snapshot_to_state
from egcam_lightning.history.folder import RunFolder
from egcam_lightning.history.history import History
from egcam_lightning.history.packed import PackedSnapshots
from egcam_lightning.history.records import ProbeImages, Snapshot
from tests.support.fingerprints import memory_of
from tests.support.snapshots import random_snapshot

GRIDS = [(7, 7), (64, 64), (256, 256)]
N = 16
METRICS = {f"drift/metric {index}": index / 3 for index in range(25)}


def a_snapshot(step: int, grid: tuple[int, ...] = (64, 64), **changes: object) -> Snapshot:
    return random_snapshot(0, step, N, grid, metrics=METRICS, **changes)


def size_of(packed: PackedSnapshots) -> int:
    buffer = io.BytesIO()
    torch.save(packed.states(), buffer)
    return buffer.tell()


def whole(packed: PackedSnapshots) -> list[int]:
    """Which of the snapshots, known by their steps, have all cells, read from no folder."""
    return [snapshot.step for snapshot in packed if snapshot.attribution.shape[1:] == (64, 64)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_snapshot_takes_at_most_4_kb_of_memory_and_of_a_checkpoint_whatever_the_grid(grid):
    packed, count = PackedSnapshots(), 10
    for step in range(2 * count):
        packed = packed.plus(a_snapshot(step, grid))
        if step == count - 1:
            half = memory_of(packed), size_of(packed)
    full = memory_of(packed), size_of(packed)
    # Beside them there are the maps of the two snapshots that the next one is compared with.
    beside = 2 * N * 2 * grid[0] * grid[1]
    for few, many in zip(half, full, strict=True):
        assert 2048 < (many - few) / count <= 4096
        assert many <= 2 * count * 4096 + beside + 4096


@pytest.mark.parametrize("grid", [(14, 14), (7, 10), (4, 16, 16)], ids=str)
def test_what_is_kept_of_a_snapshot_is_the_average_over_at_most_64_cells(grid):
    snapshots = [a_snapshot(step, grid) for step in range(4)]
    kept = PackedSnapshots(snapshots)[1].attribution
    assert kept[0].numel() <= 64 < snapshots[1].attribution[0].numel()
    if grid == (14, 14):
        expected = adaptive_avg_pool2d(snapshots[1].attribution, (8, 8))
        assert torch.allclose(kept, expected, rtol=1e-3, atol=1e-6)
    assert torch.equal(kept, PackedSnapshots(PackedSnapshots(snapshots)[1:2])[0].attribution)  # rounded once


def test_what_the_next_one_is_compared_with_is_kept_whole():
    packed = PackedSnapshots([a_snapshot(0, when="start", baselines=0)])
    assert whole(packed) == [0]
    for step in (1, 2, 3):
        packed = packed.plus(a_snapshot(step))
    assert whole(packed) == [1, 3]  # the reference, and the one before
    packed = packed.plus(a_snapshot(4, baselines=2, when="step"))
    assert whole(packed) == [4]
    packed = packed.plus(a_snapshot(5, baselines=2)).plus(a_snapshot(6, baselines=2))
    assert whole(packed) == [5, 6]


def test_first_baselines_may_come_back_and_their_reference_stays():
    generations = [0, 0, 1, 1, 0, 2, 2]
    packed = PackedSnapshots(a_snapshot(step, baselines=one) for step, one in enumerate(generations))
    assert whole(packed) == [0, 5, 6]
    assert whole(PackedSnapshots.from_states(packed.states())) == [0, 5, 6]


def test_a_state_gives_the_same_snapshots_and_the_same_state():
    packed = PackedSnapshots(a_snapshot(step) for step in range(5))
    buffer = io.BytesIO()
    torch.save(packed.states(), buffer)
    buffer.seek(0)
    again = PackedSnapshots.from_states(torch.load(buffer, weights_only=True))
    for one, other in zip(again, packed, strict=True):
        assert one.key == other.key
        assert torch.equal(one.attribution, other.attribution)
        assert torch.equal(one.score, other.score)
    more = a_snapshot(9)
    assert size_of(again.plus(more)) == size_of(packed.plus(more))
    assert whole(again.plus(more)) == whole(packed.plus(more)) == [0, 9]


def test_maps_are_read_from_the_folder_that_holds_them_and_from_no_other(tmp_path):
    snapshots = [a_snapshot(step) for step in range(5)]
    strangers = [a_snapshot(step + 50) for step in range(5)]
    strangers = [type(one)(**{**vars(one), "step": step}) for step, one in enumerate(strangers)]
    probe = ProbeImages(torch.zeros(N, 8, 8, 3, dtype=torch.uint8))
    packed = PackedSnapshots(snapshots)
    RunFolder(tmp_path / "other").open(probe, "egcam", strangers)
    packed.folders.append(tmp_path / "nowhere")
    assert packed.missing == 3
    packed.folders.append(tmp_path / "other")
    assert whole(packed) == [0, 4]
    RunFolder(tmp_path / "mine").open(probe, "egcam", snapshots)
    packed.folders.append(tmp_path / "mine")
    assert packed.missing == 0
    for one, other in zip(packed, snapshots, strict=True):
        assert torch.equal(one.attribution, other.attribution)
    for path in (tmp_path / "mine" / "maps").iterdir():
        path.write_bytes(path.read_bytes()[:100])  # a disk that lost something
    assert whole(packed) == [0, 4]


def test_no_file_is_read_for_anything_but_maps(tmp_path, monkeypatch):
    packed = PackedSnapshots(a_snapshot(step) for step in range(5))

    def refuse(*_):
        raise AssertionError("a file was read")

    monkeypatch.setattr("egcam_lightning.history.packed.read_maps", refuse)
    packed.folders.append(tmp_path)
    assert [snapshot.metrics for snapshot in packed] == [METRICS] * 5
    assert all(a.step < b.step for a, b in pairwise(packed))
    assert len(packed.states()) == 5
    with pytest.raises(AssertionError, match="a file was read"):
        _ = packed[1].attribution


def test_a_folder_with_averages_is_a_history_that_says_so_by_their_shapes(tmp_path):
    packed = PackedSnapshots(a_snapshot(step) for step in range(4))
    RunFolder(tmp_path).open(ProbeImages(torch.zeros(N, 8, 8, 3, dtype=torch.uint8)), "egcam", packed)
    grids = [tuple(snapshot.attribution.shape[1:]) for snapshot in History.load(tmp_path)]
    assert grids == [(64, 64), (8, 8), (8, 8), (64, 64)]


def test_snapshots_of_a_checkpoint_of_before_are_read(tmp_path):
    snapshots = [a_snapshot(step) for step in range(4)]
    packed = PackedSnapshots.from_states(map(snapshot_to_state, snapshots))
    assert whole(packed) == [0, 3]
    assert torch.equal(packed[3].attribution, snapshots[3].attribution)
