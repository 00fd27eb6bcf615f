"""What people do in a notebook: look at a value, and plot it."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from egcam_lightning import Audit, History, expected_gradcam
from egcam_lightning.findings.records import AuditRecord, Finding, Patch
from egcam_lightning.notebook import heat, stretch
from tests.support.snapshots import make_history, make_probe

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    matplotlib.pyplot.close("all")


@pytest.fixture(scope="module")
def explanation():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 2)
    )
    return expected_gradcam(model, torch.rand(10, 3, 16, 16), torch.rand(4, 3, 16, 16), num_samples=2)


def pictures(html):
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"base64,([^\"]+)", html)]


def test_an_explanation_shows_its_first_maps(explanation):
    html = explanation._repr_html_()
    assert "10 explanations at layer &#x27;0&#x27;" in html
    assert [picture.size for picture in pictures(html)] == [(16, 16)] * 8
    brightest = np.unravel_index(np.asarray(pictures(html)[0], dtype=float).sum(2).argmax(), (16, 16))
    assert float(explanation.heatmap[0][brightest]) == pytest.approx(1.0, abs=0.02)


def test_an_explanation_plots_a_map_an_image(explanation):
    figure, axes = explanation.plot()
    assert len(axes) == len(figure.axes) == 8
    assert axes[0].get_title().startswith(f"class {int(explanation.target[0])}, score ")
    _, over = explanation.plot(torch.full((10, 32, 32, 3), 200, dtype=torch.uint8))
    assert over[0].images[0].get_array().shape == (32, 32, 3)


def test_a_history_shows_its_last_snapshot_and_what_the_audit_says():
    history = make_history()
    html = history._repr_html_()
    assert f"{len(history)} snapshots" in html
    assert len(pictures(html)) == min(8, len(history.probe.images))
    audit = AuditRecord((), (), 0, "", 1.0, "Not tested: <no> images.")
    assert "Not tested: &lt;no&gt; images." in replace(history, audit=audit)._repr_html_()
    assert "No snapshot yet" in History(make_probe(2, 8, 8))._repr_html_()


def test_a_history_plots_values_over_steps():
    history = make_history()
    figure, ax = history.plot("consensus", "drift/previous")
    assert ax in figure.axes
    line = ax.get_lines()[0]
    assert line.get_xdata().tolist() == [s.step for s in history.snapshots if "consensus" in s.metrics]
    assert line.get_ydata().tolist() == [s.metrics["consensus"] for s in history.snapshots if "consensus" in s.metrics]
    assert history.plot("consensus", ax=ax)[1] is ax
    with pytest.raises(ValueError, match=r"There is no value 'consensu' to plot\. There are: consensus"):
        history.plot("consensu")


def test_an_audit_shows_what_it_found():
    patch = Patch(0, 0, 0, torch.rand(3, 4, 6), 0.8)
    finding = Finding(1, "cat", "capture", 0.8, 0.1, (0.5, 0.9), 9, (patch,), "A patch makes it a cat.")
    html = Audit((finding,), (), 9, "conv", 0.2, "One finding.")._repr_html_()
    assert "One finding." in html
    assert "A patch makes it a cat." in html
    assert "cat: 80% turn" in html
    assert [picture.size for picture in pictures(html)] == [(6, 4)]


def test_volumes_show_too():
    shown = heat(torch.rand(2, 3, 4, 4), torch.zeros(2, 6, 8, 8, 3, dtype=torch.uint8))
    assert shown.shape == (2, 8, 8, 3)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_any_channels_can_be_shown(channels):
    shown = stretch(torch.linspace(-1, 1, channels * 4).view(channels, 2, 2))
    assert shown.shape == (2, 2, 3)
    assert int(shown.min()) == 0
