"""The pages for everyone: axe-core finds nothing, the keyboard reaches all, and a phone shows all of it."""

from __future__ import annotations

from dataclasses import replace

import matplotlib
import numpy as np
import pytest

from egcam_lightning import audit
from egcam_lightning.pictures.patches import as_shown
from egcam_lightning.report.payload import DIVERGING, SEQUENTIAL
from tests.findings.scenes import ByHand, images_of
from tests.report.page_actions import position, settle
from tests.support.snapshots import make_history

PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
WIDE = {"viewport": {"width": 1366, "height": 900}}


@pytest.fixture(scope="module")
def planted():
    return audit(ByHand(on_tag=160.0), *images_of(12, tagged=1.0), class_names=("horse", "deer", "frog", "cat"))


@pytest.fixture
def open_audit(browser, planted, tmp_path):
    """The page of an audit alone, which has no script."""
    planted.to_html(tmp_path / "audit.html")
    contexts = []

    def open_page(**options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.goto((tmp_path / "audit.html").as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()


def violations(page) -> list[str]:
    """What axe-core finds, an element each."""
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright",
        reason='axe-core was not found: it comes with axe-playwright-python, pip install -e ".[test]".',
    )
    settle(page)
    found = axe.Axe().run(page).response["violations"]
    return [
        f"{one['id']} ({one['impact']}): {node['html'][:160]} {node['any'][0]['message'][:120] if node['any'] else ''}"
        for one in found
        for node in one["nodes"]
    ]


def open_everything(page) -> None:
    """Enlarge a row and unfold what is folded."""
    if page.locator("#more").is_visible():
        page.locator("#more").click()
    page.locator(".row .tile").first.click()
    for summary in page.locator("summary").all():
        summary.click()
    settle(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_axe_finds_nothing_on_the_page_of_a_run(show, history, planted, size, scheme):
    page = show(replace(history, audit=as_shown(planted)), color_scheme=scheme, **size)
    open_everything(page)
    assert violations(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_the_page_of_two_runs(show, history, scheme):
    page = show(history, make_history(8, 12, shortcut=True, seed=1), color_scheme=scheme)
    open_everything(page)
    assert violations(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_axe_finds_nothing_on_the_page_of_an_audit(open_audit, size, scheme):
    page = open_audit(color_scheme=scheme, **size)
    for summary in page.locator("summary").all():
        summary.click()
    assert violations(page) == []


def test_axe_would_find_something(show, history):
    page = show(history)
    page.evaluate("document.querySelector('#play').removeAttribute('aria-label')")
    page.evaluate("document.querySelector('#play').removeAttribute('title')")
    assert any("button-name" in one for one in violations(page))


def test_a_phone_shows_findings_and_unfolded_patches_without_sideways_scrolling(show, history, planted, open_audit):
    page = show(replace(history, audit=as_shown(planted)), **PHONE)
    open_everything(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page = open_audit(**PHONE)
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_keyboard_alone_reaches_every_control_and_sees_where_it_is(show, history, planted):
    page = show(replace(history, audit=as_shown(planted)))
    wanted = page.evaluate(
        """[...document.querySelectorAll('button, select, input, summary, [tabindex="0"]')]
            .filter((e) => !e.disabled && e.checkVisibility()).length"""
    )
    visited = set()
    for _ in range(wanted + 20):
        page.keyboard.press("Tab")
        state = page.evaluate(
            """(() => {
                const e = document.activeElement, box = e.getBoundingClientRect(), bar = document.querySelector('.bar');
                if (e === document.body) return null;
                e.dataset.visit ??= String(Math.random());
                const under = !bar.contains(e) && box.bottom <= bar.getBoundingClientRect().bottom
                    && getComputedStyle(bar).position === 'sticky' && bar.getBoundingClientRect().top <= 0;
                return [e.dataset.visit, getComputedStyle(e).outlineStyle !== 'none', under, e.outerHTML.slice(0, 80)];
            })()"""
        )
        if state is not None:
            visited.add(state[0])
            assert state[1], f"no outline shows that the focus is on {state[3]}"
            assert not state[2], f"the bar covers what has the focus: {state[3]}"
    assert len(visited) == wanted


def test_all_that_a_click_does_a_key_does(show, history, planted):
    page = show(replace(history, audit=as_shown(planted)))
    page.locator(".row .tile").nth(2).focus()
    page.keyboard.press("Enter")
    assert page.locator(".row").nth(2).locator(".detail").is_visible()
    page.locator("#numbers summary").focus()
    page.keyboard.press("Enter")
    settle(page)
    assert page.locator("#numbers tbody tr").first.is_visible()
    page.locator("#position").focus()  # what a click on a chart, a strip or a line of the table does
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert position(page) == 1


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_young_run_has_words_pictures_and_numbers(show, count):
    page = show(make_history(4, count))
    assert page.locator(".lead").inner_text()
    assert page.locator(".row").count() == 4
    charts = page.locator("#charts .chart")
    assert charts.count() >= 8
    assert page.locator("#charts .plot").first.is_visible() == (count > 1)  # one value alone is a number, and no curve
    assert all(charts.locator(".readout").evaluate_all("all => all.map((one) => one.textContent)"))
    rows = page.locator(".row").evaluate_all("all => all.map((row) => row.getBoundingClientRect().top)")
    assert (rows[0] == rows[1]) == (count == 1)  # without a strip there is room for two beside each other
    if count > 1:
        assert page.locator(".row .strip").first.bounding_box()["width"] >= 120 * count
    assert page.evaluate("document.querySelector('#rows .row').getBoundingClientRect().top < innerHeight")
    assert ("not known yet" in page.locator(".summary").inner_text()) == (count < 3)


def test_the_default_colours_of_a_map_can_be_told_apart_without_seeing_colours():
    brightness = matplotlib.colormaps[SEQUENTIAL[0]](np.linspace(0, 1, 256))[:, :3] @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(brightness) > -1e-3).all()
    assert brightness[-1] - brightness[0] > 0.8
    red_to_blue = matplotlib.colormaps[DIVERGING[0]]([0.0, 1.0])  # not red and green, which one man in twelve mixes up
    assert abs(red_to_blue[0] - red_to_blue[1])[2] > 0.2
