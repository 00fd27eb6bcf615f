"""The page's view of the classes, in a real browser: a patch shows the images that it turned."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from egcam_lightning import audit
from egcam_lightning.pictures.patches import as_shown
from tests.findings.scenes import ByHand, images_of
from tests.report.page_actions import position, settle
from tests.support.snapshots import make_history

NAMES = ("horse", "deer", "frog", "cat")


@pytest.fixture(scope="module")
def planted():
    return as_shown(audit(ByHand(on_tag=160.0), *images_of(12, tagged=1.0), class_names=NAMES))


@pytest.fixture
def page(show, planted):
    return show(replace(make_history(2, 3), audit=planted))


def test_a_click_on_a_patch_shows_images_before_and_with_it(page, planted):
    horse = page.locator(".classes tr.found")
    examples = horse.locator(".pastes figure")
    assert not examples.first.is_visible()
    horse.locator("summary").first.click()
    settle(page)
    assert examples.first.is_visible()
    called = [paste.called for paste in planted.classes[0].pastes if paste.patch == 0]
    captions = horse.locator("details").first.locator("figcaption").all_inner_texts()
    assert captions == [f"{name} → horse" for name in called]
    sizes = examples.first.locator("img").evaluate_all("all => all.map((i) => [i.naturalWidth, i.alt])")
    assert sizes == [[96, f"an image that is called {called[0]}"], [96, "the same with the patch"]]
    horse.locator("summary").first.click()
    settle(page)
    assert not examples.first.is_visible()


def test_enter_does_the_same_and_the_keys_of_the_page_go_on(page):
    summary = page.locator(".classes tr.found summary").first
    summary.focus()
    page.keyboard.press("Enter")
    settle(page)
    assert page.locator(".classes tr.found .pastes figure").first.is_visible()
    assert position(page) == 2
    summary.evaluate("element => element.blur()")
    page.keyboard.press("ArrowLeft")
    assert position(page) == 1


def test_a_patch_that_turned_nothing_opens_nothing(page, planted):
    shown = {(one.class_name, paste.patch) for one in planted.classes for paste in one.pastes}
    assert page.locator(".classes .patches details").count() == len(shown)
    assert page.locator(".classes .patches > *").count() == sum(len(one.patches) for one in planted.classes)


def test_of_many_findings_the_head_says_three_and_the_classes_all(show, planted):
    capture = planted.findings[0]
    many = tuple(
        replace(capture, target=one.target, class_name=one.class_name, sentence=f"The finding of {one.class_name}.")
        for one in planted.classes
    )
    page = show(replace(make_history(2, 3), audit=replace(planted, findings=many)))
    head, classes = page.locator(".summary").inner_text(), page.locator(".audit").inner_text()
    assert [f.sentence in head for f in many] == [True, True, True, False]
    assert "And 1 more below." in head
    assert all(f.sentence in classes for f in many)


def test_before_and_after_are_small_and_differ_where_the_patch_is_alone(planted):
    paste = planted.classes[0].pastes[0]
    patch = planted.classes[0].patches[paste.patch]
    assert paste.before.dtype == torch.uint8
    assert paste.before.shape == (3, 32, 32)
    changed = (paste.before != paste.after).any(0)
    changed[patch.top : patch.top + patch.size[0], patch.left : patch.left + patch.size[1]] = False
    assert not changed.any()
    large, labels = images_of(6, tagged=1.0)
    wide = torch.nn.functional.interpolate(large, size=(64, 96))
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(32), ByHand(on_tag=160.0))
    record = audit(model, wide, labels, target_layer=model[1].features)
    assert {paste.before.shape[1:] for one in record.classes for paste in one.pastes} <= {(21, 32)}
