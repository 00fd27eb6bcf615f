"""The page in a real browser: Chromium, headless, through Playwright."""

from __future__ import annotations

import base64
import io
import re
import shutil
import time
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from synthetic_history import CLASSES, make_history
from torch.nn.functional import interpolate

from egcam_lightning.report import build_report
from egcam_lightning.snapshot import History, ProbeImages, Snapshot

DASH = "\N{EN DASH}"
NAME = "</script><script>window.hacked = 1</script>"


@pytest.fixture(scope="module")
def browser():
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("No Chromium was found on this machine, so the page was not opened in a browser.")
    playwright_api = pytest.importorskip("playwright.sync_api", reason="Playwright is needed to open the page.")
    with playwright_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture
def show(browser, tmp_path):
    """Open the page of some histories; in the end no page may have complained or asked the network for anything."""
    complaints, asked, contexts = [], [], []

    def open_page(*histories, names=None, **options):
        path = build_report(list(histories), tmp_path / "report.html", names=names)
        context = browser.new_context(**{"viewport": {"width": 1366, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        if any(len(history) for history in histories):
            page.wait_for_selector("html[data-ready=true]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


@pytest.fixture(scope="module")
def history():
    return make_history(8, 12)


def position(page):
    settle(page)
    return int(page.locator("html").get_attribute("data-position"))


def settle(page):
    """Wait until what was asked for has been drawn."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def go(page, to):
    page.locator("#position").fill(str(to))
    settle(page)


def choose(page, control, value):
    page.select_option(f"#{control}", value)
    settle(page)


def tiles(page):
    settle(page)
    return page.evaluate("[...document.querySelectorAll('.row .tile canvas')].map((c) => c.toDataURL())")


def pixels(page, row=0):
    """``(H, W, 3)`` in 0 to 255: what the tile of a row shows."""
    found = base64.b64decode(tiles(page)[row].split(",")[1])
    return np.asarray(Image.open(io.BytesIO(found)).convert("RGB"), dtype=float)


def order(page):
    settle(page)
    return page.evaluate("[...document.querySelectorAll('.row')].map((r) => Number(r.dataset.index))")


def fact(page, row, name, run=0):
    """The number behind one fact of a row; ``None`` for a dash."""
    data = page.locator(f".row[data-index='{row}'] .cell[data-run='{run}'] .facts .{name} data").first
    value = data.get_attribute("value")
    assert (data.inner_text() == DASH) == (value == "")
    return None if value == "" else float(value)


def readings(page):
    """The numbers behind the charts' readouts, first run."""
    found = page.evaluate(
        """[...document.querySelectorAll('#charts .chart')].map(
            (c) => [c.dataset.key, c.querySelector('.readout data').value, c.querySelector('.readout data').textContent]
        )"""
    )
    assert all((text == DASH) == (value == "") for _, value, text in found)
    return {key: None if value == "" else float(value) for key, value, _ in found}


def test_it_opens_at_the_last_snapshot_with_a_row_an_image(show, history):
    page = show(history, names=["my run"])
    assert position(page) == len(history) - 1
    assert order(page) == list(range(8))
    assert page.title() == "my run: where the model looks"
    assert "different places in different pictures" in page.locator(".lead").inner_text()


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


def test_numbers_shown_are_the_numbers_in_the_history(show, history):
    page = show(history)
    page.set_viewport_size({"width": 1366, "height": 3000})
    for index in (0, 5, 11):
        go(page, index)
        snapshot = history[index]
        for row in range(8):
            assert fact(page, row, "score") == pytest.approx(snapshot.score[row].item(), rel=1e-5)
            drift = None if snapshot.drift_previous is None else snapshot.drift_previous[row].item()
            assert fact(page, row, "drift") == (None if drift is None else pytest.approx(drift, rel=1e-5))
            cell = page.locator(f".row[data-index='{row}'] .facts")
            assert cell.locator(".target data").inner_text() == history.probe.name(int(snapshot.target[row]))
            assert cell.locator(".prediction data").inner_text() == history.probe.name(int(snapshot.prediction[row]))
            right = bool(snapshot.prediction[row] == history.probe.labels[row])
            assert cell.locator(".verdict").inner_text() == ("✓ right" if right else "✗ wrong")
        shown = readings(page)
        assert shown.keys() == {key for s in history.snapshots for key in s.metrics}
        for key, value in shown.items():
            expected = snapshot.metrics.get(key)
            assert value == (None if expected is None else pytest.approx(expected, rel=1e-5)), key


def test_missing_values_are_a_dash(show):
    history = make_history(2, 3)
    nothing = torch.full((2,), float("nan"))
    last = replace(
        history[-1],
        score=nothing,
        drift_previous=None,
        noise_floor=None,
        prediction=torch.full((2,), -1),
        attribution=torch.full((2, 7, 7), float("nan")),
        metrics={},
    )
    page = show(replace(history, snapshots=(*history.snapshots[:-1], last)))
    assert fact(page, 0, "score") is None
    assert fact(page, 0, "drift") is None
    assert page.locator(".row[data-index='0'] .prediction").inner_text().split() == ["predicted", DASH]
    assert "nothing positive" in page.locator(".row[data-index='0'] .facts").inner_text()
    assert set(readings(page).values()) == {None}


def test_play_advances_stops_at_the_end_and_can_be_paused(show):
    page = show(make_history(2, 6))
    page.select_option("#speed", "110")
    page.click("#play")
    page.wait_for_selector("html[data-position='2']")
    assert page.get_attribute("#play", "aria-label") == "Pause"
    page.click("#play")
    paused = position(page)
    assert page.get_attribute("#play", "aria-label") == "Play"
    page.wait_for_timeout(300)
    assert position(page) == paused < 5
    page.click("#play")
    page.wait_for_selector("#play[aria-label='Play']")
    assert position(page) == 5


def test_rows_are_sorted_by_drift_by_wrong_predictions_and_by_class(show, history):
    page = show(history)
    for index in (4, 8):
        go(page, index)
        choose(page, "sort", "drift")
        assert order(page) == history[index].drift_previous.argsort(descending=True).tolist()
        choose(page, "sort", "wrong")
        wrong = history[index].prediction != history.probe.labels
        assert order(page) == (~wrong).int().argsort(stable=True).tolist()
    choose(page, "sort", "class")
    names = [history.probe.name(int(history.probe.labels[i])) for i in order(page)]
    assert [name for i, name in enumerate(names) if i == 0 or name != names[i - 1]] == page.evaluate(
        "(names) => names.sort((a, b) => a.localeCompare(b))", list(CLASSES)
    )
    choose(page, "sort", "index")
    assert order(page) == list(range(8))


def test_text_of_the_user_is_shown_and_does_nothing(show):
    history = make_history(4, 3)
    page = show(history, names=[NAME])
    page.locator(".row[data-index='2'] .tile").click()
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.scripts.length") == 2
    assert page.locator(".row[data-index='2'] .target data").inner_text() == "<script>alert(1)</script>"
    assert page.locator(".eyebrow b").inner_text() == NAME


def test_sixteen_images_over_a_hundred_epochs_stay_small_and_open_soon(show, tmp_path):
    history = make_history(16, 100, (224, 224))
    path = build_report(history, tmp_path / "measured.html")
    assert path.stat().st_size < 5e6
    page = show(make_history(1, 1))
    began = time.perf_counter()
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready=true]")
    # Two seconds on a machine of one's own; more where others share it.
    assert time.perf_counter() - began < 6


QUADRANTS = [(0, 0), (0, 1), (1, 0), (1, 1)]


def hot_quadrants(sign=1.0, grid=(6, 8), size=(60, 120)):
    """Four grey pictures, and for each a map of which one quadrant is hot."""
    attribution = torch.zeros(4, *grid)
    for image, (down, across) in enumerate(QUADRANTS):
        attribution[image].view(2, grid[0] // 2, 2, grid[1] // 2)[down, :, across] = sign
    zero = torch.zeros(4)
    snapshot = Snapshot(0, 1, "epoch", "conv", 1, attribution, zero.long(), zero.long(), zero, zero, zero, zero)
    return History(ProbeImages(torch.full((4, *size, 3), 128, dtype=torch.uint8)), (snapshot,))


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


def test_the_keyboard_moves_plays_jumps_and_closes(show, history):
    page = show(history)
    keys = page.keyboard
    keys.press("Home")
    assert position(page) == 0
    keys.press("ArrowRight")
    keys.press("ArrowRight")
    keys.press("ArrowLeft")
    assert position(page) == 1
    shares = [s.metrics.get("drift/significant", 0) for s in history.snapshots]
    marked = [i for i, share in enumerate(shares) if share > 0.1]
    visited = []
    for _ in marked:
        keys.press("n")
        visited.append(position(page))
    assert visited == marked
    assert page.locator("#next-moved").is_disabled()
    keys.press("p")
    assert position(page) == marked[-2]
    keys.press("End")
    assert position(page) == 11
    keys.press(" ")
    assert page.get_attribute("#play", "aria-label") == "Pause"
    keys.press(" ")
    page.locator(".row[data-index='1'] .tile").focus()
    keys.press("Enter")
    assert page.locator(".detail").count() == 1
    keys.press("Escape")
    assert page.locator(".detail").count() == 0
    assert page.evaluate("document.activeElement.className").startswith("tile")
    page.locator("#position").focus()
    keys.press("ArrowLeft")
    assert page.locator("#position").input_value() == str(position(page))


def test_an_enlarged_row_shows_its_own_drift_and_score(show, history):
    page = show(history)
    page.locator(".row[data-index='3'] h3").click()
    detail = page.locator(".row[data-index='3'] .detail")
    for index in (3, 9):
        go(page, index)
        for key, values in (("drift", history[index].drift_previous), ("score", history[index].score)):
            shown = detail.locator(f".chart[data-key='image/{key}'] .readout data").get_attribute("value")
            assert float(shown) == pytest.approx(values[3].item(), rel=1e-5)
    assert detail.locator(".band").count() == 1
    moved = sum(
        bool(b.drift_previous is not None and b.drift_previous[3] > torch.maximum(a.noise_floor, b.noise_floor)[3])
        for a, b in zip(history.snapshots, history.snapshots[1:], strict=False)
    )
    assert detail.locator("circle.moved").count() == moved > 0
    page.locator(".row[data-index='5'] .tile").click()
    assert page.locator(".detail").count() == 1
    assert page.locator(".row[data-index='5'] .tile").get_attribute("aria-expanded") == "true"
    page.locator(".close").click()
    assert page.locator(".detail").count() == 0


def test_charts_and_strips_lead_to_their_snapshots_and_floors_are_bands(show, history):
    page = show(history)
    plot = page.locator("#charts .chart[data-key='consensus'] .plot")
    box = plot.bounding_box()
    plot.click(position={"x": 40, "y": box["height"] / 2})
    assert position(page) == 0
    plot.click(position={"x": box["width"] - 11, "y": box["height"] / 2})
    assert position(page) == 11
    strip = page.locator(".row[data-index='0'] .strip")
    strip.click(position={"x": 10, "y": 20})
    assert position(page) == 0
    choose(page, "columns", "near")
    strip.click(position={"x": 64 + 10, "y": 20})
    assert position(page) == 1
    assert page.locator("#charts .band").count() == 2
    assert page.locator("#charts .chart[data-key='drift/previous'] .band").count() == 1


def test_a_reload_keeps_what_was_chosen(show, history):
    page = show(history, viewport={"width": 1366, "height": 3000})
    choose(page, "mode", "signed")
    choose(page, "colormap", "PuOr_r")
    choose(page, "sort", "drift")
    page.locator(".row[data-index='4'] .tile").click()
    go(page, 5)
    before, rows = tiles(page), order(page)
    page.wait_for_url(re.compile("at=5"))
    page.reload()
    page.wait_for_selector("html[data-ready=true]")
    assert position(page) == 5
    assert order(page) == rows
    assert tiles(page) == before
    assert page.locator(".row[data-index='4'] .detail").count() == 1


def test_two_runs_stand_side_by_side_at_the_same_epoch(show, history):
    seldom = make_history(8, 12, shortcut=True, seed=1)
    seldom = replace(seldom, snapshots=seldom.snapshots[1:8:3])
    page = show(history, seldom, names=["often", "seldom"])
    page.set_viewport_size({"width": 1600, "height": 4000})
    assert page.locator(".lead").count() == 2
    assert "different images" in page.locator(".notice").inner_text()
    go(page, 5)
    assert page.locator("#when").inner_text().startswith("epoch 4")
    for row in range(8):
        assert fact(page, row, "score", 0) == pytest.approx(history[5].score[row].item(), rel=1e-5)
        assert fact(page, row, "score", 1) == pytest.approx(seldom[1].score[row].item(), rel=1e-5)
    assert page.locator(".cell[data-run='1'] .stale data").first.inner_text() == "epoch 3"
    assert page.locator(".cell[data-run='0'] .stale").count() == 0
    boxes = [page.locator(f".row[data-index='0'] .cell[data-run='{run}']").bounding_box() for run in (0, 1)]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    go(page, 0)
    assert page.locator(".cell[data-run='1'] .none data").first.inner_text() == DASH


def test_no_snapshot_gives_a_page_that_says_so_and_one_works(show):
    page = show(make_history(2, 0))
    assert "No snapshot has been taken yet" in page.locator("body").inner_text()
    page = show(make_history(2, 1))
    assert "before training" in page.locator("#when").inner_text()
    page.keyboard.press("ArrowRight")
    page.click("#play")
    assert position(page) == 0


@pytest.mark.parametrize("runs", [1, 2])
def test_a_phone_never_scrolls_sideways(show, history, runs):
    page = show(*[history] * runs, viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    page.locator("#more").tap()
    assert page.locator("#sort").is_visible()
    page.locator(".row .tile").first.tap()
    page.locator("#numbers summary").tap()
    settle(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.locator("#numbers tbody tr").count() == runs * len(history)


def test_light_and_dark_follow_the_system(show, history):
    page = show(history, color_scheme="light")

    def colours():
        found = page.evaluate(
            "(() => { const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]; })()"
        )
        return [sum(map(int, c.removeprefix("rgb(").rstrip(")").split(","))) / 3 for c in found]

    paper, ink = colours()
    assert paper > 200 > 60 > ink
    page.emulate_media(color_scheme="dark")
    paper, ink = colours()
    assert paper < 60 < 200 < ink


def test_every_control_and_picture_has_a_name_for_screen_readers(show, history):
    page = show(history)
    page.locator(".row .tile").first.click()
    settle(page)
    nameless = page.evaluate(
        """[...document.querySelectorAll('button, select, input, [role=img]')].filter((e) =>
            !(e.getAttribute('aria-label') || e.labels?.length && e.labels[0].textContent.trim()
              || e.textContent.trim() || e.querySelector?.('[aria-label]'))).map((e) => e.outerHTML)"""
    )
    assert nameless == []
    go(page, 3)
    assert page.get_attribute("#position", "aria-valuetext") == page.locator("#status").inner_text()
    assert "epoch 2" in page.locator("#status").inner_text()
