"""What a reader does with the page, and what they see then."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

DASH = "\N{EN DASH}"


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
