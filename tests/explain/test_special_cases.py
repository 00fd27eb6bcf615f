"""Every member of the family is a method that others have written: against captum and pytorch-grad-cam."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from captum.attr import (
    LayerActivation,
    LayerGradCam,
    LayerGradientXActivation,
    LayerIntegratedGradients,
)
from pytorch_grad_cam import GradCAM, HiResCAM
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor

from egcam_lightning.explain import Draws, ExpectedGradCAM, Perturbation
from tests.explain.captum_oracles import captum_gradient_shap, captum_over_all_baselines, midpoints
from tests.support.maps import relative_error
from tests.support.networks import Case, Pooled, seeded
from tests.support.pictures import images

EXACT = 1e-4


def shown_like_theirs(attribution: Tensor, case: Case) -> np.ndarray:
    """What pytorch-grad-cam makes of a signed map: its own steps, in its own order."""
    size = (case.inputs.shape[3], case.inputs.shape[2])
    return scale_cam_image(scale_cam_image(attribution.clamp(min=0).cpu().numpy(), size))


def test_grad_cam_is_captums(case: Case) -> None:
    ours = ExpectedGradCAM(case.model, case.layer, Perturbation.grad_cam())(case.inputs, target=case.target)
    theirs = LayerGradCam(case.model, case.module).attribute(
        case.inputs, case.target, relu_attributions=False, attr_dim_summation=True
    )
    assert relative_error(ours.attribution, theirs[:, 0].detach()) < EXACT
    assert ours.draws.shape[0] == 1


@pytest.mark.parametrize(
    ("perturbation", "method"), [(Perturbation.grad_cam(), GradCAM), (Perturbation.hires_cam(), HiResCAM)]
)
def test_grad_cam_and_hires_cam_are_pytorch_grad_cams(case: Case, perturbation: Perturbation, method: type) -> None:
    ours = ExpectedGradCAM(case.model, case.layer, perturbation)(case.inputs, target=case.target)
    model = copy.deepcopy(case.model)  # it leaves gradients behind
    with method(model=model, target_layers=[model.get_submodule(case.layer)]) as cam:
        theirs = cam(case.inputs, [ClassifierOutputTarget(int(t)) for t in case.target])
    assert theirs.max() > 0.5
    np.testing.assert_allclose(shown_like_theirs(ours.attribution, case), theirs, atol=EXACT)


def test_smooth_grad_cam_is_mean_weights_over_noisy_inputs_times_clean_activations(case: Case) -> None:
    samples, sigma = 4, 0.3
    noise = torch.randn(samples, *case.inputs.shape, generator=torch.Generator().manual_seed(3))
    draws = Draws(torch.zeros(samples, 3, dtype=torch.long), torch.ones(samples, 3), noise)
    explainer = ExpectedGradCAM(case.model, case.layer, Perturbation.smooth_grad_cam(sigma))
    ours = explainer(case.inputs, target=case.target, draws=draws)

    model = copy.deepcopy(case.model)
    targets = [ClassifierOutputTarget(int(t)) for t in case.target]
    unit = case.inputs.std((2, 3), correction=0, keepdim=True)
    with GradCAM(model=model, target_layers=[model.get_submodule(case.layer)]) as cam:
        weights = []
        for sample in noise:
            cam(case.inputs + sigma * unit * sample, targets)
            gradients = cam.activations_and_grads.gradients[0].cpu().numpy()
            weights.append(cam.get_cam_weights(None, None, targets, None, gradients))
        cam(case.inputs, targets)
        clean = cam.activations_and_grads.activations[0].cpu().numpy()
    theirs = (np.mean(weights, 0)[:, :, None, None] * clean).sum(1)
    assert relative_error(ours.attribution, torch.from_numpy(theirs)) < EXACT


def test_integrated_grad_cam_is_captums_gradients_along_the_path_pooled(case: Case) -> None:
    samples = 6
    place = midpoints(samples, 3)
    explainer = ExpectedGradCAM(case.model, case.layer, Perturbation.integrated_grad_cam())
    ours = explainer(case.inputs, target=case.target, draws=Draws(torch.zeros(samples, 3, dtype=torch.long), place))
    gradients = LayerGradientXActivation(case.model, case.module, multiply_by_inputs=False)
    weights = [
        gradients.attribute(t * case.inputs, case.target).mean((2, 3), keepdim=True).detach() for t in place[:, 0]
    ]
    activation = LayerActivation(case.model, case.module)
    difference = activation.attribute(case.inputs) - activation.attribute(torch.zeros_like(case.inputs))
    theirs = (torch.stack(weights).mean(0) * difference).sum(1)
    assert relative_error(ours.attribution, theirs.detach()) < EXACT


def test_zero_baseline_at_midpoints_is_captums_layer_integrated_gradients(case: Case) -> None:
    samples = 8
    explainer = ExpectedGradCAM(case.model, case.layer, Perturbation(baseline="zeros"))
    draws = Draws(torch.zeros(samples, 3, dtype=torch.long), midpoints(samples, 3))
    ours = explainer(case.inputs, target=case.target, draws=draws)
    theirs = LayerIntegratedGradients(case.model, case.module).attribute(
        case.inputs, torch.zeros_like(case.inputs), case.target, n_steps=samples, method="riemann_middle"
    )
    assert relative_error(ours.attribution, theirs.sum(1).detach()) < EXACT


def test_expected_grad_cam_on_the_full_product_is_the_mean_of_captums_over_baselines(case: Case) -> None:
    steps, rows = 6, len(case.baselines)
    draws = Draws(
        torch.arange(rows).repeat_interleave(steps)[:, None].expand(-1, 3), midpoints(steps, 3).repeat(rows, 1)
    )
    ours = ExpectedGradCAM(case.model, case.layer)(case.inputs, case.baselines, case.target, draws=draws)
    assert relative_error(ours.attribution, captum_over_all_baselines(case, steps)) < EXACT


def test_expected_grad_cam_on_input_paths_is_captums_gradient_shap_replayed(case: Case) -> None:
    theirs, draws = captum_gradient_shap(case, samples=7, seed=11)
    explainer = ExpectedGradCAM(case.model, case.layer, Perturbation.expected(space="input"))
    ours = explainer(case.inputs, case.baselines, case.target, draws=draws)
    assert relative_error(ours.attribution, theirs) < EXACT


def own_draws(case: Case, perturbation: Perturbation, seeds: int, samples: int) -> Tensor:
    """``(seeds, B, h, w)``: the same explanation under many seeds."""
    maps = [
        ExpectedGradCAM(case.model, case.layer, perturbation, num_samples=samples, seed=seed)(
            case.inputs, case.baselines, case.target
        ).attribution
        for seed in range(seeds)
    ]
    return torch.stack(maps)


def assert_same_mean(ours: Tensor, theirs: Tensor, other: Tensor | float = 0.0) -> None:
    """The mean over seeds agrees, cell by cell, within what its own spread allows; and the spread is small.

    Args:
        ours: ``(n, ...)`` independent estimates.
        theirs: ``(...)``, the expected mean.
        other: the standard error of ``theirs``.

    """
    error = (ours.std(0) ** 2 / len(ours) + torch.as_tensor(other) ** 2).sqrt()
    z = (ours.mean(0) - theirs) / error
    assert error.mean() < 0.12 * theirs.abs().mean(), "too few draws for the test to say anything"
    assert z.square().mean() < 2
    assert z.abs().max() < 5


def test_expected_grad_cam_by_its_own_draws_has_captums_mean(vgg_case: Case) -> None:
    ours = own_draws(vgg_case, Perturbation.expected(), seeds=24, samples=32)
    assert_same_mean(ours, captum_over_all_baselines(vgg_case, steps=100))


def test_expected_grad_cam_on_input_paths_by_its_own_draws_has_captums_mean(vgg_case: Case) -> None:
    ours = own_draws(vgg_case, Perturbation.expected(space="input"), seeds=16, samples=32)
    theirs = torch.stack([captum_gradient_shap(vgg_case, samples=64, seed=seed)[0] for seed in range(12)])
    assert_same_mean(ours, theirs.mean(0), theirs.std(0) / len(theirs) ** 0.5)


@pytest.mark.parametrize("num_samples", [4, 12])
@pytest.mark.parametrize("weighting", ["elementwise", "channel"])
def test_pooling_and_one_linear_layer_have_a_closed_form(num_samples: int, weighting: str) -> None:
    model = seeded(Pooled)
    inputs, baselines, target = images(3), images(4, seed=1), torch.tensor([0, 3, 2])
    ours = ExpectedGradCAM(model, "features.3", weighting=weighting, num_samples=num_samples)(inputs, baselines, target)
    with torch.no_grad():
        difference = model.features(inputs) - model.features(baselines).mean(0)
        closed = (model.fc.weight[target][:, :, None, None] * difference).mean(1) * 12 / difference[0, 0].numel()
    assert relative_error(ours.attribution, closed) < 1e-5
