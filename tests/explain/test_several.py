"""Several layers give one explanation each, and a mean that keeps what they promise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from egcam_lightning import ExpectedGradCAM
from tests.support import pictures


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


@pytest.fixture
def images():
    return pictures.images(2, seed=1, size=(13, 17))


@pytest.fixture
def baselines():
    return pictures.images(8, seed=2, size=(13, 17))


def test_each_layer_gets_the_explanation_it_would_get_alone(model, images, baselines):
    explainer = ExpectedGradCAM(model, ["1", model[4]], num_samples=8)
    for explanation, layer in zip(explainer.each(images, baselines, 1), ["1", "4"], strict=True):
        alone = ExpectedGradCAM(model, layer, num_samples=8)(images, baselines, 1)
        assert explanation.layer == layer
        assert torch.equal(explanation.attribution, alone.attribution)


def test_the_mean_is_on_the_finest_grid_and_as_complete_as_its_parts(model, images, baselines):
    explainer = ExpectedGradCAM(model, ["1", "4"], num_samples=64)
    mean = explainer(images, baselines, 1)
    parts = explainer.each(images, baselines, 1)
    assert mean.layer == explainer.layer == "1+4"
    assert explainer.grid == mean.attribution.shape[1:] == (13, 17)  # a grid of 6 x 8 does not divide it
    sums = torch.stack([part.attribution.flatten(1).sum(1) for part in parts])
    torch.testing.assert_close(mean.attribution.flatten(1).sum(1), sums.mean(0))
    assert (mean.completeness_gap <= torch.stack([p.completeness_gap for p in parts]).amax(0) + 1e-4).all()


def test_the_mean_of_one_layer_is_that_layer(model, images, baselines):
    alone = ExpectedGradCAM(model, "4", num_samples=8)(images, baselines, 1)
    torch.testing.assert_close(ExpectedGradCAM(model, ["4"], num_samples=8)(images, baselines, 1).draws, alone.draws)


def test_layers_are_taken_as_they_are_announced(model, images, baselines):
    announced = ExpectedGradCAM(model, ["1", "4"], num_samples=8)(images, baselines, 1)
    again = ExpectedGradCAM(model, announced.layer, num_samples=8)(images, baselines, 1)
    assert again.layer == announced.layer
    assert torch.equal(again.attribution, announced.attribution)


def test_no_layer_is_refused(model):
    with pytest.raises(ValueError, match="at least one layer, but got an empty list"):
        ExpectedGradCAM(model, [])
