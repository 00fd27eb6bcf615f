"""The page's browser: Chromium, headless, through Playwright."""

from __future__ import annotations

import shutil

import pytest

from egcam_lightning.report import build_report
from tests.support.snapshots import make_history


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
