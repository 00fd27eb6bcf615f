"""What is explained beyond one class of a classifier: sets of classes, regions, values."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from egcam_lightning import ExpectedGradCAM
from egcam_lightning.explain.scores import RegionScore
from tests.support import pictures


@pytest.fixture
def trunk():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())


@pytest.fixture
def images():
    return pictures.images(3, seed=1, size=(12, 16))


@pytest.fixture
def baselines():
    return pictures.images(8, seed=2, size=(12, 16))


def gap(explanation):
    difference = explanation.score - explanation.baseline_score
    return (explanation.attribution.flatten(1).sum(1) - difference).abs().sum() / difference.abs().sum()


def test_a_set_of_classes_is_explained_by_the_mean_of_its_members(trunk, images, baselines):
    model = nn.Sequential(trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    sets = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    explainer = ExpectedGradCAM(model, num_samples=8)
    together = explainer(images, baselines, sets)
    single = torch.stack([explainer(images, baselines, c).attribution for c in range(4)])
    expected = torch.einsum("bc,cbhw->bhw", sets / sets.sum(1, keepdim=True), single)
    torch.testing.assert_close(together.attribution, expected)
    assert together.target[1] == 1
    assert gap(together) < 1e-3


def test_an_empty_set_is_refused(trunk, images, baselines):
    model = nn.Sequential(trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    with pytest.raises(ValueError, match=r"sets of classes as bool of the output's shape \(3, 4\), none of them empty"):
        ExpectedGradCAM(model, num_samples=2)(images, baselines, torch.zeros(3, 4, dtype=torch.bool))


@pytest.mark.parametrize("rest", [(), (nn.Flatten(0),)], ids=["a column", "a vector"])
def test_a_value_is_explained_as_it_is(trunk, images, baselines, rest):
    model = nn.Sequential(trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1), *rest)
    explanation = ExpectedGradCAM(model, num_samples=8, score="value")(images, baselines)
    torch.testing.assert_close(explanation.score, model(images).detach().reshape(-1))
    assert gap(explanation) < 1e-4


def test_one_of_several_values_is_chosen_by_its_column(trunk, images, baselines):
    model = nn.Sequential(trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    explanation = ExpectedGradCAM(model, num_samples=8, score="value")(images, baselines, 2)
    torch.testing.assert_close(explanation.score, model(images).detach()[:, 2])


def test_a_segmented_class_is_explained_over_the_region_where_it_is_predicted(trunk, images, baselines):
    model = nn.Sequential(trunk, nn.Conv2d(8, 3, 1))
    output = model(images).detach()
    target = output.flatten(2).mean(2).argmax(1)
    explanation = ExpectedGradCAM(model, "0", num_samples=16, score="region")(images, baselines, target)
    for index, c in enumerate(target.tolist()):
        region = output[index].argmax(0) == c
        assert explanation.score[index].item() == pytest.approx(output[index, c][region].mean().item(), abs=1e-5)
    # The region stays that of the image along its paths; were it the point's own, the sum would be another.
    assert gap(explanation) < 0.01


def test_a_given_mask_is_the_region(trunk, images, baselines):
    model = nn.Sequential(trunk, nn.Conv2d(8, 3, 1))
    mask = torch.zeros(3, 12, 16, dtype=torch.bool)
    mask[:, :4, :4] = True
    explanation = ExpectedGradCAM(model, "0", num_samples=8, score=RegionScore(mask))(images, baselines, 1)
    torch.testing.assert_close(explanation.score, model(images).detach()[:, 1, :4, :4].mean((1, 2)))
    # Nothing outside the mask, but for the border that the 3x3 convolution behind the layer sees, matters to it.
    assert explanation.attribution[:, 5:, :].abs().max() == 0
    assert explanation.attribution[:, :, 5:].abs().max() == 0


def test_the_last_grid_of_a_segmentation_is_not_its_own_logits(trunk, images, baselines):
    model = nn.Sequential(trunk, nn.Conv2d(8, 3, 1), nn.Upsample(scale_factor=2))
    assert ExpectedGradCAM(model, num_samples=2, score="region")(images, baselines, 0).layer == "0"


def test_dense_logits_need_a_score_that_is_made_for_them(trunk, images, baselines):
    with pytest.raises(
        ValueError, match=r"logits of shape \(images, classes\), but it is a tensor of shape \(3, 3, 12, 16\)"
    ):
        ExpectedGradCAM(nn.Sequential(trunk, nn.Conv2d(8, 3, 1)), "0", num_samples=2)(images, baselines, 0)
    model = nn.Sequential(trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    with pytest.raises(ValueError, match=r"\(images, classes, \*size\) for a region's score.*score='logit'"):
        ExpectedGradCAM(model, num_samples=2, score="region")(images, baselines, 0)
