"""What the page draws, pixel by pixel, in a real browser."""

from __future__ import annotations

from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from egcam_lightning.history.history import History
from tests.report.page_actions import choose, go, pixels, tiles
from tests.support.snapshots import make_history, make_probe, make_snapshot


def test_the_slider_moves_the_maps_of_all_rows(show, history):
    page = show(history)
    page.set_viewport_size({"width": 1366, "height": 3000})
    last = tiles(page)
    go(page, 2)
    early = tiles(page)
    assert len(early) == 8
    assert all(a != b for a, b in zip(last, early, strict=True))
    go(page, len(history) - 1)
    assert tiles(page) == last


QUADRANTS = [(0, 0), (0, 1), (1, 0), (1, 1)]


def hot_quadrants(sign=1.0, grid=(6, 8), size=(60, 120)):
    """Four grey pictures, and for each a map of which one quadrant is hot."""
    attribution = torch.zeros(4, *grid)
    for image, (down, across) in enumerate(QUADRANTS):
        attribution[image].view(2, grid[0] // 2, 2, grid[1] // 2)[down, :, across] = sign
    probe = make_probe(4, images=torch.full((4, *size, 3), 128, dtype=torch.uint8), restored=False)
    return History(probe, (make_snapshot(attribution, epoch=0),))


def test_a_hot_quadrant_is_drawn_hot_in_that_quadrant_and_nowhere_else(show):
    page = show(hot_quadrants())
    for image, hot in enumerate(QUADRANTS):
        away = np.abs(pixels(page, image) - 128).max(-1)
        height, width = away.shape
        assert width / height == pytest.approx(2, rel=0.03)
        # Between two cells' centres the map fades, so the cells beside the border are left out.
        margin_y, margin_x = height // 8, width // 10
        for y, x in QUADRANTS:
            rows = slice(height // 2 + margin_y, None) if y else slice(0, height // 2 - margin_y)
            columns = slice(width // 2 + margin_x, None) if x else slice(0, width // 2 - margin_x)
            part = away[rows, columns]
            assert part.min() > 60 if (y, x) == hot else part.max() <= 2, (image, y, x)


def test_maps_are_drawn_as_torch_interpolates_them(show):
    history = hot_quadrants(grid=(4, 6))
    maps = torch.randn(4, 4, 6, generator=torch.Generator().manual_seed(0))
    page = show(replace(history, snapshots=(replace(history[0], attribution=maps),)))
    page.locator("#opacity").fill("1")
    table = torch.from_numpy(matplotlib.colormaps["inferno"](np.arange(256), bytes=True)[:, :3].astype(np.float32))
    for image in range(4):
        drawn = torch.from_numpy(pixels(page, image)).float()
        values = torch.cdist(drawn.flatten(0, 1), table).argmin(1).view(drawn.shape[:2]) / 255
        positive = maps[image].clamp(min=0) / maps[image].max()
        expected = interpolate(positive[None, None], drawn.shape[:2], mode="bilinear", align_corners=False)[0, 0]
        # Half a step of the stored bytes, one of the colours, and the canvas's own smoothing between pixels.
        assert (values - expected).abs().mean() < 0.01
        assert (values - expected).abs().max() < 0.06


@pytest.mark.parametrize(("sign", "channel"), [(1.0, 0), (-1.0, 2)])
def test_signed_maps_are_red_for_and_blue_against(show, sign, channel):
    page = show(hot_quadrants(sign))
    if sign < 0:
        assert np.abs(pixels(page) - 128).max() <= 2
    choose(page, "mode", "signed")
    colour = pixels(page)[4, 4]
    assert colour[channel] > colour[2 - channel] + 40


def test_one_scale_over_time_lets_a_fading_map_fade(show):
    strong = hot_quadrants()
    faint = replace(strong[0], epoch=1, attribution=0.2 * strong[0].attribution)
    page = show(replace(strong, snapshots=(strong[0], faint)))

    def strength():
        return np.abs(pixels(page)[4, 4] - 128).max()

    alone = strength()
    choose(page, "scale", "time")
    assert strength() < 0.7 * alone
    go(page, 0)
    assert strength() == pytest.approx(alone, abs=2)


def test_opacity_and_colours_change_the_overlay_and_the_outline_marks_the_object(show):
    page = show(make_history(1, 4))
    seen = [tiles(page)]
    page.locator("#opacity").fill("0.3")
    seen.append(tiles(page))
    choose(page, "colormap", "viridis")
    seen.append(tiles(page))
    page.check("#outline")
    seen.append(tiles(page))
    page.locator("#opacity").fill("0")
    page.uncheck("#outline")
    bare = tiles(page)
    choose(page, "mode", "signed")
    assert tiles(page) == bare
    assert len({*map(tuple, [*seen, bare])}) == 5
