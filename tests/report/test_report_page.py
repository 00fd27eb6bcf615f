"""What a reader can do with the page, in a real browser."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import pytest
import torch

from egcam_lightning.report import build_report
from tests.report.page_actions import DASH, choose, fact, go, order, position, readings, settle, tiles
from tests.support.snapshots import CLASSES, make_history

NAME = "</script><script>window.hacked = 1</script>"


def test_it_opens_at_the_last_snapshot_with_a_row_an_image(show, history):
    page = show(history, names=["my run"])
    assert position(page) == len(history) - 1
    assert order(page) == list(range(8))
    assert page.title() == "my run: where the model looks"
    assert "different places in different pictures" in page.locator(".lead").inner_text()


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
    page = show(make_history(2, 60))
    page.select_option("#speed", "110")
    page.click("#play")
    page.wait_for_selector("html:not([data-position='59']):not([data-position='0'])")
    assert page.get_attribute("#play", "aria-label") == "Pause"
    page.click("#play")
    paused = position(page)
    assert page.get_attribute("#play", "aria-label") == "Play"
    page.wait_for_timeout(300)
    assert 0 < position(page) == paused < 59
    go(page, 56)
    page.click("#play")
    page.wait_for_selector("html[data-position='59'] #play[aria-label='Play']")


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


def test_an_enlarged_row_lists_every_value_of_its_image(show, history):
    page = show(history)
    page.locator(".row[data-index='3'] h3").click()
    go(page, 5)
    shown = {}
    for line in page.locator(".row[data-index='3'] .detail dl > div").all():
        shown[line.locator("dt").inner_text()] = line.locator("data").get_attribute("value")
    listed = {v.title: getattr(history[5], name) for name, v in history[5].values_per_image().items() if v.title}
    assert [*listed, "cell at full colour"] == list(shown)
    listed["noise floor"] = torch.maximum(history[4].noise_floor, history[5].noise_floor)
    for title, values in listed.items():
        assert float(shown[title]) == pytest.approx(values[3].item(), rel=1e-5), title


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
