"""``attribute`` is taken by captum's and Quantus' own tools as one of captum's methods is."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pytest
import quantus
import torch
from captum.attr import LayerGradCam, LayerIntegratedGradients, NoiseTunnel, visualization
from captum.metrics import infidelity, sensitivity_max
from torch.nn.functional import interpolate

from egcam_lightning.explain import ExpectedGradCAM, Perturbation
from tests.support.maps import relative_error
from tests.support.networks import VGG, Case, seeded
from tests.support.pictures import images


@pytest.fixture
def explainer(vgg_case: Case) -> ExpectedGradCAM:
    return ExpectedGradCAM(vgg_case.model, vgg_case.layer, num_samples=8)


def test_it_is_the_explanation_at_the_images_size(vgg_case: Case, explainer: ExpectedGradCAM) -> None:
    found, delta = explainer.attribute(
        vgg_case.inputs, vgg_case.baselines, vgg_case.target, return_convergence_delta=True
    )
    whole = explainer(vgg_case.inputs, vgg_case.baselines, vgg_case.target)
    assert found.shape == vgg_case.inputs.shape
    torch.testing.assert_close(found.flatten(1).sum(1), whole.attribution.flatten(1).sum(1), rtol=1e-3, atol=1e-5)
    shrunk = interpolate(found.sum(1, keepdim=True), size=whole.attribution.shape[1:], mode="area")[:, 0]
    assert np.corrcoef(shrunk.flatten().cpu(), whole.attribution.flatten().cpu())[0, 1] > 0.9
    expected = whole.attribution.flatten(1).sum(1) - (whole.score - whole.baseline_score)
    torch.testing.assert_close(delta, expected)


def test_without_baselines_they_are_captums_zeros(vgg_case: Case, explainer: ExpectedGradCAM) -> None:
    _, delta = explainer.attribute(
        vgg_case.inputs, target=vgg_case.target, n_samples=512, return_convergence_delta=True
    )
    theirs, their_delta = LayerIntegratedGradients(vgg_case.model, vgg_case.module).attribute(
        vgg_case.inputs, target=vgg_case.target, n_steps=128, return_convergence_delta=True
    )
    found = explainer.attribute(vgg_case.inputs, 0.0, vgg_case.target, n_samples=512)
    expected = interpolate(theirs.sum(1, keepdim=True).detach(), size=found.shape[2:], mode="bilinear")
    cells = theirs[0, 0].numel() / found[0, 0].numel()
    assert relative_error(found.sum(1, keepdim=True), expected * cells) < 0.02
    assert delta.abs().max() < 0.05 + 2 * their_delta.abs().max()


def test_grad_cam_is_captums_layer_grad_cam_brought_to_the_images_size(vgg_case: Case) -> None:
    explainer = ExpectedGradCAM(vgg_case.model, vgg_case.layer, Perturbation.grad_cam())
    found = explainer.attribute(vgg_case.inputs, target=vgg_case.target, n_samples=8)
    theirs = LayerGradCam(vgg_case.model, vgg_case.module).attribute(vgg_case.inputs, vgg_case.target).detach()
    expected = LayerGradCam.interpolate(theirs, vgg_case.inputs.shape[2:], "bilinear")
    cells = theirs[0, 0].numel() / found[0, 0].numel()
    assert relative_error(found.sum(1, keepdim=True), expected * cells) < 1e-4


def test_the_number_of_samples_and_of_points_at_once_are_those_of_the_call(
    vgg_case: Case, explainer: ExpectedGradCAM
) -> None:
    at = (vgg_case.inputs, vgg_case.baselines, vgg_case.target)
    more = ExpectedGradCAM(vgg_case.model, vgg_case.layer, num_samples=16).attribute(*at)
    before = explainer.chunk_size
    found = explainer.attribute(*at, n_samples=16, internal_batch_size=3)
    assert relative_error(found, more) < 1e-4
    assert relative_error(found, explainer.attribute(*at)) > 1e-3
    assert explainer.chunk_size == before


def test_noise_tunnel_takes_it(vgg_case: Case, explainer: ExpectedGradCAM) -> None:
    tunnel, arguments = NoiseTunnel(explainer), {"target": vgg_case.target, "n_samples": 128}
    still, moved = (
        tunnel.attribute(vgg_case.inputs, nt_samples=2, stdevs=deviation, **arguments) for deviation in (0.0, 0.5)
    )
    assert still.shape == vgg_case.inputs.shape
    # It repeats the images, so that each copy has draws of its own.
    assert relative_error(still, explainer.attribute(vgg_case.inputs, **arguments)) < 0.1
    assert relative_error(moved, still) > 0.2
    drawn = tunnel.attribute(
        vgg_case.inputs, nt_samples=2, draw_baseline_from_distrib=True, baselines=vgg_case.baselines, **arguments
    )
    assert drawn.isfinite().all()


def test_captums_metrics_take_it(vgg_case: Case, explainer: ExpectedGradCAM) -> None:
    attribution = explainer.attribute(vgg_case.inputs, vgg_case.baselines, vgg_case.target)

    def perturb(inputs):
        noise = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0)) * 0.1
        return noise, inputs - noise

    values = infidelity(
        vgg_case.model, perturb, vgg_case.inputs, attribution, target=vgg_case.target, n_perturb_samples=4
    )
    assert values.shape == (3,)
    assert values.isfinite().all()
    worst = sensitivity_max(
        explainer.attribute,
        vgg_case.inputs,
        perturb_radius=0.02,
        n_perturb_samples=2,
        target=vgg_case.target,
        baselines=vgg_case.baselines,
    )
    assert (worst > 0).all()
    assert (worst < 1).all()


def test_captums_visualization_shows_it(vgg_case: Case, explainer: ExpectedGradCAM) -> None:
    attribution = explainer.attribute(vgg_case.inputs, vgg_case.baselines, vgg_case.target)
    shown = attribution[0].movedim(0, 2).cpu().numpy()
    figure, _ = visualization.visualize_image_attr(shown, method="heat_map", sign="all", use_pyplot=False)
    assert figure.axes[0].images[0].get_array().shape[:2] == tuple(vgg_case.inputs.shape[2:])


@pytest.mark.cpu("Quantus is given arrays, and a model on the CPU")
def test_quantus_takes_it(vgg_case: Case) -> None:
    def explain(model, inputs, targets, **_):
        explainer = ExpectedGradCAM(model, vgg_case.layer, num_samples=4)
        images = torch.as_tensor(np.asarray(inputs), dtype=torch.float32)
        return explainer.attribute(images, vgg_case.baselines, torch.as_tensor(targets)).cpu().numpy()

    metric = quantus.MaxSensitivity(nr_samples=2, lower_bound=0.02, disable_warnings=True, return_aggregate=False)
    values = metric(
        model=vgg_case.model,
        x_batch=vgg_case.inputs.cpu().numpy(),
        y_batch=vgg_case.target.cpu().numpy(),
        a_batch=None,
        explain_func=explain,
        device="cpu",
    )
    assert len(values) == 3
    assert all(0 < value < 2 for value in values)


def test_a_tuple_of_one_gives_a_tuple_of_one(vgg_case: Case, explainer: ExpectedGradCAM) -> None:
    at = (vgg_case.baselines,), vgg_case.target
    (found,), delta = explainer.attribute((vgg_case.inputs,), *at, return_convergence_delta=True)
    assert torch.equal(found, explainer.attribute(vgg_case.inputs, vgg_case.baselines, vgg_case.target))
    assert delta.shape == (3,)


def test_a_tuple_of_inputs_is_refused_with_what_to_write() -> None:
    with pytest.raises(TypeError, match=r"`inputs` to be a tensor.*a tuple of 2.*`additional_forward_args`"):
        ExpectedGradCAM(seeded(VGG), "features.4").attribute((images(2), images(2)), target=0)
