"""Large grids are explained a few images at a time, with the values of all at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import egcam_lightning.metrics.functional._maps as maps_module
import egcam_lightning.training.few_at_once as few_module
from egcam_lightning.explain import ExpectedGradCAM
from egcam_lightning.explain.captured import Captured
from egcam_lightning.explain.chunking import images_at_once, points_at_once
from egcam_lightning.explain.scores import RegionScore
from egcam_lightning.metrics.functional import blurred, deletion_auc, insertion_auc, noise_floor
from egcam_lightning.training.few_at_once import explain_few_at_once
from tests.support.fits import fit, make_callback
from tests.support.networks import VGG, seeded
from tests.support.pictures import images

GENERATOR = torch.Generator().manual_seed(0)
DRAWS = torch.randn(16, 5, 12, 12, generator=GENERATOR)
INDEX = torch.arange(16)[:, None].expand(16, 5) % 8


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if memory held a few hundred cells."""
    monkeypatch.setattr(maps_module, "_AT_ONCE", 400)
    monkeypatch.setattr(few_module, "_CELLS", 400)


def explained(targets: Any = (0, 1, 2, 3, 4)) -> Any:
    explainer = ExpectedGradCAM(seeded(VGG), "features.4", num_samples=8)
    inputs = images(5)
    explainer.find(inputs)
    return explain_few_at_once(explainer, (inputs,), images(8, seed=1), torch.tensor(targets), range(5), seed=0)


def test_a_few_images_at_a_time_have_the_maps_of_all(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    few, floor = explained()
    monkeypatch.undo()
    whole, expected = explained()
    assert len(few.draws) == 0 < len(whole.draws), "draws are what would not fit"
    for name in ("attribution", "heatmap", "score", "baseline_score", "standard_error", "off_grid"):
        torch.testing.assert_close(getattr(few, name), getattr(whole, name), rtol=1e-4, atol=1e-6)
    assert torch.equal(few.target, whole.target)
    assert torch.equal(few.prediction, whole.prediction)
    assert torch.equal(few.baseline_index, whole.baseline_index)
    torch.testing.assert_close(floor, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "value",
    [
        lambda: noise_floor(DRAWS, INDEX),
        lambda: blurred(DRAWS[:4, :3]),
        lambda: insertion_auc(lambda x, t: x.mean((1, 2, 3)), DRAWS[:4, :3], DRAWS[0, :4], torch.arange(4)),
        lambda: deletion_auc(lambda x, t: x.amax((1, 2, 3)), DRAWS[:4, :3], DRAWS[0, :4], torch.arange(4)),
    ],
    ids=["noise floor", "blurred", "insertion", "deletion"],
)
def test_a_few_at_a_time_have_the_values_of_all(value: Any, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    few = value()
    monkeypatch.undo()
    torch.testing.assert_close(few, value())


def test_a_snapshot_of_a_few_at_a_time_is_that_of_all(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(name: str) -> Any:
        callback = make_callback(metrics="default", target_layer="features", num_samples=8, every_n_epochs=None)
        fit(tmp_path / name, callback, max_epochs=1)
        return callback.history[0]

    whole = run("whole")
    monkeypatch.setattr(few_module, "_CELLS", 1)
    few = run("few")
    torch.testing.assert_close(few.attribution, whole.attribution, rtol=2e-3, atol=1e-6)
    keys = [key for key in whole.metrics if not key.startswith("overhead")]
    assert {key: few.metrics[key] for key in keys} == pytest.approx({key: whole.metrics[key] for key in keys}, rel=1e-2)


def test_regions_that_were_given_for_all_images_are_not_cut(small: None) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1))
    inputs = images(5)
    mask = torch.rand(5, *inputs.shape[2:], generator=GENERATOR) > 0.5
    explainer = ExpectedGradCAM(model, "1", num_samples=4, score=RegionScore(mask))
    explainer.find(inputs)
    found, _ = explain_few_at_once(explainer, (inputs,), images(4, seed=1), torch.ones(5).long(), range(5), seed=0)
    assert len(found.draws) == 4


def test_points_in_front_of_a_decoder_are_as_few_as_images() -> None:
    """A grid of 4 x 4 says nothing about how large the part behind it is, where the model returns images."""
    inputs, bottleneck = torch.zeros(1, 3, 256, 256), torch.zeros(1, 32, 4, 4)
    dense = Captured(inputs, (), bottleneck, torch.zeros(1, 5, 256, 256))
    logits = Captured(inputs, (), bottleneck, torch.zeros(1, 5))
    assert dense.points_at_once == images_at_once(inputs) < 10
    assert logits.points_at_once == points_at_once(bottleneck) > 10_000


def test_scores_of_dense_outputs_are_taken_a_few_at_a_time() -> None:
    """Every draw has its baseline's output, as large as an image: all of them together would be as large as a film."""
    largest = 0

    def score(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, output.numel())
        return output.flatten(1).amax(1)

    model = seeded(lambda: nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1)))
    inputs, baselines = images(2, 1, size=(512, 512)), images(2, 1, seed=1, size=(512, 512))
    ExpectedGradCAM(model, "1", num_samples=16, score=score)(inputs, baselines, 1)
    assert largest <= 6 * 2**20 < 2 * 16 * 2 * 512**2
