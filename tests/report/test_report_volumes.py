"""Volumes on the page: each snapshot shows the slice that its map speaks for most."""

from __future__ import annotations

from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from torch import Tensor

from egcam_lightning.explain.explanation import to_heatmap
from egcam_lightning.history.history import History
from egcam_lightning.pictures.volumes import take_slices
from egcam_lightning.report import build_report
from egcam_lightning.report.payload import build_payload
from egcam_lightning.report.summary import mean_map, place
from tests.report.page_actions import choose, go, pixels, settle, tiles
from tests.support.snapshots import make_probe, make_snapshot

DEPTH, SIZE = 8, (48, 64)


def make_volumes(*maps: Tensor, depth: int = DEPTH, size: tuple[int, int] = SIZE) -> History:
    """Volumes whose slice k is of the grey value 20 k, and a snapshot for each ``(N, d, h, w)`` of maps."""
    n = len(maps[0])
    greys = (20 * torch.arange(depth)).to(torch.uint8).view(1, -1, 1, 1, 1)
    masks = torch.zeros(n, depth, *size, dtype=torch.bool)
    masks[:, 0, :8, :8] = True
    snapshots = [make_snapshot(m, epoch=e, step=e) for e, m in enumerate(maps)]
    return History(make_probe(n, images=greys.expand(n, -1, *size, 3), masks=masks), tuple(snapshots))


def at_planes(*planes: int) -> Tensor:
    """For each volume a map over four planes, of which one speaks for the class in its upper left quarter."""
    maps = torch.zeros(len(planes), 4, 4, 6)
    for volume, plane in zip(maps, planes, strict=True):
        volume[plane, :2, :3] = 1
    return maps


def slice_shown(page, row: int) -> str:
    settle(page)
    return page.locator(f".row[data-index='{row}'] .facts .slice data").inner_text()


def test_playing_through_the_run_the_slice_follows_the_map(show):
    page = show(make_volumes(at_planes(0, 3), at_planes(2, 1)))
    page.set_viewport_size({"width": 1366, "height": 1800})
    for position, shown in ((1, (4, 3)), (0, (0, 7))):
        go(page, position)
        for row, k in enumerate(shown):
            assert slice_shown(page, row) == f"{k + 1} of {DEPTH}"
            label = page.locator(f".row[data-index='{row}'] .tile canvas").get_attribute("aria-label")
            assert label.endswith(f"slice {k + 1} of {DEPTH}")
            drawn = pixels(page, row)
            # Cold where nothing speaks for the class: the picture as it is.
            assert np.abs(drawn[-20:, -20:] - 20 * k).max() <= 2
            assert np.abs(drawn[:20, :20] - 20 * k).max() > 60


def test_the_outline_is_that_of_the_slice(show):
    page = show(make_volumes(at_planes(0, 3)))
    page.locator("#opacity").fill("0")
    before = tiles(page)
    page.check("#outline")
    # The object of both is on the first slice, which is shown of one.
    assert [a == b for a, b in zip(before, tiles(page), strict=True)] == [False, True]


def test_the_heat_is_the_heatmaps_at_that_slice(show):
    maps = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    history = make_volumes(maps)
    page = show(history)
    page.locator("#opacity").fill("1")
    table = torch.from_numpy(matplotlib.colormaps["inferno"](np.arange(256), bytes=True)[:, :3].astype(np.float32))
    slices = torch.tensor([int(slice_shown(page, row).split()[0]) - 1 for row in range(2)])
    for row in range(2):
        drawn = torch.from_numpy(pixels(page, row)).float()
        values = torch.cdist(drawn.flatten(0, 1), table).argmin(1).view(drawn.shape[:2]) / 255
        expected = take_slices(to_heatmap(maps, (DEPTH, *drawn.shape[:2])), slices)[row]
        error = (values - expected / expected.max()).abs()
        assert error.mean() < 0.015
        assert error.max() < 0.08
    choose(page, "mode", "signed")
    assert len(set(tiles(page))) == 2


def test_what_speaks_against_in_the_planes_beside_hides_no_heat(show):
    maps = at_planes(1)
    maps[:, [0, 2]] = -9.0
    page = show(make_volumes(maps, depth=16))
    assert slice_shown(page, 0) == "7 of 16"
    assert "nothing positive" not in page.locator(".row .facts").inner_text()
    assert np.abs(pixels(page)[:20, :20] - 20 * 6).max() > 60
    choose(page, "mode", "signed")
    blue = pixels(page)[-5, -5]
    assert blue[2] > blue[0] + 40


def test_the_page_holds_the_slices_that_are_shown_and_no_others():
    history = make_volumes(at_planes(0, 3), at_planes(2, 3), at_planes(0, 3))
    (run,) = build_payload([history], ["run"])["runs"]
    assert [list(stack) for stack in run["images"]] == [[0, 4], [7]]
    assert [list(stack) for stack in run["masks"]] == [[0, 4], [7]]
    assert [row["slices"] for row in run["snapshots"]] == [[0, 7], [4, 7], [0, 7]]
    assert (run["depth"], run["height"], run["width"]) == (DEPTH, *SIZE)
    (run,) = build_payload([replace(history, snapshots=())], ["run"])["runs"]
    assert [list(stack) for stack in run["images"]] == [[4], [4]]


@pytest.mark.parametrize("count", [1, 40])
def test_however_many_slices_are_shown_the_page_stays_small(tmp_path, count):
    generator = torch.Generator().manual_seed(0)
    maps = [torch.rand(16, 40, 4, 4, generator=generator) for _ in range(count)]
    for k, one in enumerate(maps):
        one[:, k] += 1
    history = make_volumes(*maps, depth=40, size=(112, 112))
    noise = torch.randint(0, 256, (16, 40, 112, 112, 3), generator=generator).to(torch.uint8)
    history = replace(history, probe=replace(history.probe, images=noise))
    (run,) = build_payload([history], ["run"])["runs"]
    assert sum(map(len, run["images"])) == 16 * count
    assert build_report(history, tmp_path / "page.html").stat().st_size < 5e6


def test_a_place_is_named_whatever_the_depth():
    assert place(mean_map(at_planes(0, 3))) == "the top left corner"


def test_maps_of_images_are_refused_for_volumes(tmp_path):
    history = make_volumes(torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match=r"\(N, d, h, w\) with one map per image"):
        build_report(history, tmp_path / "page.html")
