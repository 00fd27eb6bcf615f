"""What an explanation leaves unexplained: nothing where it is complete, much where it is not, and it says which."""

from __future__ import annotations

import pytest
import torch

from egcam_lightning.explain import Draws, ExpectedGradCAM, Perturbation
from tests.support.maps import pooled_gap
from tests.support.networks import VGG, Case, Pooled, ResNet, Trained, seeded
from tests.support.pictures import images

EARLIER, LAST = "3", "5"  # layers of the trained network


def entropy(maps: torch.Tensor) -> float:
    """The mean entropy of the positive maps, over that of a uniform one."""
    share = maps.clamp(min=0).flatten(1)
    share = share / share.sum(1, keepdim=True)
    return float(torch.special.entr(share).sum(1).mean() / torch.tensor(share.shape[1]).log())


@pytest.mark.parametrize("layer", ["1", EARLIER, LAST])
def test_gap_of_a_trained_network_is_below_two_percent_at_256_draws(digits: Trained, layer: str) -> None:
    explanation = ExpectedGradCAM(digits.model, layer, num_samples=256)(digits.inputs, digits.baselines, digits.target)
    assert pooled_gap(explanation) < 0.02


@pytest.mark.parametrize(("architecture", "layer"), [(VGG, "features.4"), (ResNet, "layer1")])
def test_gap_falls_as_draws_grow(architecture: type, layer: str) -> None:
    model, inputs, baselines = seeded(architecture), images(8), images(8, seed=1)
    gaps = [pooled_gap(ExpectedGradCAM(model, layer, num_samples=n)(inputs, baselines, 1)) for n in (16, 64, 256)]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < gaps[0] / 4


def test_gap_of_one_linear_head_is_float_error_with_any_draws() -> None:
    for samples in (1, 3, 4):
        explainer = ExpectedGradCAM(seeded(Pooled), "features.3", num_samples=samples)
        assert pooled_gap(explainer(images(3), images(4, seed=1), 2)) < 1e-5


@pytest.mark.parametrize(
    "explainer",
    [
        {"weighting": "channel"},
        {"perturbation": Perturbation.grad_cam()},
        {"perturbation": Perturbation.smooth_grad_cam()},
        {"perturbation": Perturbation.integrated_grad_cam()},
    ],
    ids=["channel", "grad_cam", "smooth_grad_cam", "integrated_grad_cam"],
)
def test_what_drops_completeness_shows_a_large_gap(digits: Trained, explainer: dict) -> None:
    explanation = ExpectedGradCAM(digits.model, EARLIER, **explainer)(digits.inputs, digits.baselines, digits.target)
    assert pooled_gap(explanation) > 0.3


def test_channel_weighting_is_complete_at_pooling_and_one_linear_layer() -> None:
    explainer = ExpectedGradCAM(seeded(Pooled), "features.3", weighting="channel", num_samples=4)
    assert pooled_gap(explainer(images(3), images(4, seed=1), 2)) < 1e-5


def test_interval_towards_the_image_gives_simpler_maps_and_gives_up_completeness(digits: Trained) -> None:
    maps, gaps = [], []
    for interval in ((0, 1), (0.5, 1), (0.9, 1)):
        explainer = ExpectedGradCAM(digits.model, EARLIER, Perturbation(interval=interval), num_samples=64)
        explanation = explainer(digits.inputs, digits.baselines, digits.target)
        maps.append(entropy(explanation.attribution))
        gaps.append(pooled_gap(explanation))
    assert maps[0] > maps[1] > maps[2]
    assert gaps[0] < 0.03
    assert gaps[2] > 2 * gaps[0]


def test_scores_are_the_models_own_and_those_of_the_baselines_drawn(vgg_case: Case) -> None:
    draws = Draws(torch.tensor([[0, 1, 2], [0, 3, 3]]), torch.rand(2, 3, generator=torch.Generator().manual_seed(0)))
    explainer = ExpectedGradCAM(vgg_case.model, vgg_case.layer)
    explanation = explainer(vgg_case.inputs, vgg_case.baselines, vgg_case.target, draws=draws)
    with torch.no_grad():
        score = vgg_case.model(vgg_case.inputs)[torch.arange(3), vgg_case.target]
        of_baselines = vgg_case.model(vgg_case.baselines)[:, vgg_case.target]  # (R, B)
    expected = torch.stack([of_baselines[[0, 0], 0], of_baselines[[1, 3], 1], of_baselines[[2, 3], 2]]).mean(1)
    torch.testing.assert_close(explanation.score, score)
    torch.testing.assert_close(explanation.baseline_score, expected)
    assert torch.equal(explanation.baseline_index, draws.baseline_index)
    found = explanation.attribution.sum((1, 2))
    torch.testing.assert_close(
        explanation.completeness_gap, (found - (score - expected)).abs() / (score - expected).abs()
    )


def test_without_baselines_the_reference_is_the_empty_activation_at_a_cut(vgg_case: Case) -> None:
    model = vgg_case.model
    explanation = ExpectedGradCAM(model, vgg_case.layer, Perturbation.hires_cam())(vgg_case.inputs, target=1)
    with torch.no_grad():
        nothing = torch.zeros(1, 12, 12, 16)
        expected = model.classifier(model.avgpool(model.features[5:](nothing)).flatten(1))[0, 1]
    torch.testing.assert_close(explanation.baseline_score, expected.expand(3))
    assert (explanation.baseline_index == -1).all()


def test_without_baselines_and_without_a_cut_no_gap_is_given() -> None:
    model = seeded(ResNet)
    explanation = ExpectedGradCAM(model, "layer2.1.bn1", Perturbation.grad_cam())(images(3), target=1)
    assert explanation.baseline_score.isnan().all()
    assert explanation.completeness_gap.isnan().all()
    assert explanation.attribution.isfinite().all()


def test_attribution_is_the_mean_of_the_draws_and_standard_error_their_spread(vgg_case: Case) -> None:
    explainer = ExpectedGradCAM(vgg_case.model, vgg_case.layer, num_samples=8)
    explanation = explainer(vgg_case.inputs, vgg_case.baselines, vgg_case.target)
    assert explanation.draws.shape == (8, 3, 12, 16)
    torch.testing.assert_close(explanation.attribution, explanation.draws.mean(0))
    torch.testing.assert_close(explanation.standard_error, explanation.draws.std(0) / 8**0.5)
    assert (explanation.off_grid == 0).all()
    assert explanation.heatmap.shape == (3, 24, 32)
    assert all(tensor.dtype == torch.float32 for tensor in (explanation.attribution, explanation.draws))


def test_standard_error_bounds_the_error_of_the_mean(vgg_case: Case) -> None:
    explain = ExpectedGradCAM(vgg_case.model, vgg_case.layer, num_samples=512)
    truth = explain(vgg_case.inputs, vgg_case.baselines, vgg_case.target).attribution
    inside = []
    for seed in range(1, 11):
        few = ExpectedGradCAM(vgg_case.model, vgg_case.layer, num_samples=16, seed=seed)
        explanation = few(vgg_case.inputs, vgg_case.baselines, vgg_case.target)
        inside.append(((explanation.attribution - truth).abs() <= 2.2 * explanation.standard_error).float().mean())
    assert torch.stack(inside).mean() > 0.93  # stratified draws err less than their spread says, never more
