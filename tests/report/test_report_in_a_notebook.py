"""The page in a frame of a notebook, in a real browser: it works, and reaches nothing outside."""

from __future__ import annotations

import pytest

from egcam_lightning.report import show_report
from tests.support.snapshots import make_history


def test_the_page_works_in_its_frame_and_cannot_touch_the_notebook(browser):
    frame = show_report(make_history(3, 4), height=600)
    context = browser.new_context()
    page = context.new_page()
    complaints, asked = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.set_content(f"<p>A notebook</p>{frame._repr_html_()}")
    inside = page.frame_locator("iframe")
    inside.locator("html[data-ready=true]").wait_for(timeout=10_000)
    assert inside.locator("#rows canvas").count() > 0
    assert page.locator("iframe").bounding_box()["height"] == 600
    assert page.evaluate("document.querySelector('iframe').contentDocument") is None
    context.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith(("data:", "about:"))] == []


def test_more_than_two_runs_are_refused():
    with pytest.raises(ValueError, match="Got 3 histories"):
        show_report([make_history(1, 2)] * 3)
