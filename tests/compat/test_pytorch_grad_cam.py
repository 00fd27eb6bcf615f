"""A pipeline that was written for pytorch-grad-cam runs with one import changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.metrics.road import ROADMostRelevantFirst
from pytorch_grad_cam.utils.image import scale_cam_image, show_cam_on_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget, ClassifierOutputTarget
from torch import nn

from egcam_lightning import ExpectedGradCAM as Explainer
from egcam_lightning import Perturbation
from egcam_lightning.compat.pytorch_grad_cam import ExpectedGradCAM
from tests.support.networks import VGG, ResNet, seeded
from tests.support.pictures import images

INPUTS, TARGETS = images(2), [ClassifierOutputTarget(1), ClassifierOutputTarget(4)]


def vgg() -> tuple[nn.Module, list[nn.Module]]:
    model = seeded(VGG)
    return model, [model.features[4]]  # type: ignore[index,union-attr]


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules())


@pytest.mark.parametrize("method", [GradCAM, ExpectedGradCAM])
@pytest.mark.cpu("ROAD, one of its measures, runs on a CPU")
def test_a_pipeline_runs_with_one_import_changed(method: type) -> None:
    model, layers = vgg()
    with method(model=model, target_layers=layers) as cam:
        maps = cam(input_tensor=INPUTS, targets=TARGETS)
        outputs = cam.outputs
    shown = show_cam_on_image(INPUTS[0].permute(1, 2, 0).cpu().numpy(), maps[0], use_rgb=True)
    assert shown.shape == (*INPUTS.shape[2:], 3)
    assert maps.shape == (2, *INPUTS.shape[2:])
    assert maps.dtype == np.float32
    assert maps.min() >= 0
    assert np.allclose(maps.max((1, 2)), 1, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(outputs.detach(), model(INPUTS))
    worse = ROADMostRelevantFirst(percentile=75)(INPUTS, maps, [ClassifierOutputSoftmaxTarget(1)] * 2, model)
    assert np.isfinite(worse).all()


def test_maps_are_the_explainers_rectified_and_scaled_as_theirs_are() -> None:
    model, layers = vgg()
    with ExpectedGradCAM(model, layers, baselines=images(4, seed=1), num_samples=8) as cam:
        maps = cam(INPUTS, TARGETS)
    found = Explainer(model, layers[0], num_samples=8)(INPUTS, images(4, seed=1), torch.tensor([1, 4]))
    size = (INPUTS.shape[3], INPUTS.shape[2])
    expected = scale_cam_image(scale_cam_image(found.attribution.clamp(min=0).cpu().numpy(), size))
    np.testing.assert_allclose(maps, expected, atol=1e-5)


def test_without_baselines_paths_begin_at_the_all_zero_input() -> None:
    model, layers = vgg()
    maps = ExpectedGradCAM(model, layers)(INPUTS, TARGETS)
    found = Explainer(model, layers[0], Perturbation(baseline="zeros"))(INPUTS, target=torch.tensor([1, 4]))
    expected = scale_cam_image(scale_cam_image(found.attribution.clamp(min=0).cpu().numpy(), INPUTS.shape[:1:-1]))
    np.testing.assert_allclose(maps, expected, atol=1e-5)


def test_without_targets_the_predicted_classes_are_explained() -> None:
    model, layers = vgg()
    predicted = [ClassifierOutputTarget(int(k)) for k in model(INPUTS).argmax(1)]
    cam = ExpectedGradCAM(model, layers)
    np.testing.assert_allclose(cam(INPUTS, None), cam(INPUTS, predicted), atol=1e-5)


def test_targets_of_ones_own_are_explained() -> None:
    model, layers = vgg()
    cam = ExpectedGradCAM(model, layers)
    mine = cam(INPUTS, [lambda output: output[1], lambda output: output[4]])
    np.testing.assert_allclose(mine, cam(INPUTS, TARGETS), atol=1e-4)
    other = cam(INPUTS, [lambda output: output[1] - output[2], lambda output: output.softmax(0)[4]])
    assert np.abs(other - mine).max() > 0.05


def test_several_layers_of_different_sizes_are_scaled_and_averaged() -> None:
    model = seeded(ResNet)
    layers = [model.layer1, model.layer2]
    both = ExpectedGradCAM(model, layers)(INPUTS, TARGETS)  # type: ignore[arg-type]
    found = Explainer(model, layers, Perturbation(baseline="zeros")).each(INPUTS, target=torch.tensor([1, 4]))
    size = INPUTS.shape[:1:-1]
    each = [scale_cam_image(one.attribution.clamp(min=0).cpu().numpy(), size) for one in found]
    assert found[0].attribution.shape != found[1].attribution.shape
    np.testing.assert_allclose(both, scale_cam_image(np.mean(each, 0)), atol=1e-5)


@pytest.mark.parametrize("smoothing", [{"aug_smooth": True}, {"eigen_smooth": True}])
def test_smoothing_gives_other_maps_of_the_same_kind(smoothing: dict[str, bool]) -> None:
    model, layers = vgg()
    cam = ExpectedGradCAM(model, layers, num_samples=8)
    plain, smooth = cam(INPUTS, TARGETS), cam(INPUTS, TARGETS, **smoothing)
    assert smooth.shape == plain.shape
    assert 0 <= smooth.min() <= smooth.max() <= 1 + 1e-6
    assert np.abs(smooth - plain).max() > 0.01
    np.testing.assert_array_equal(cam(INPUTS, TARGETS), plain)


def test_the_model_keeps_no_hooks_and_no_gradients() -> None:
    model, layers = vgg()
    with ExpectedGradCAM(model, layers) as cam:
        cam(INPUTS, TARGETS)
        assert hooks(model) == 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_errors_inside_the_block_are_raised() -> None:
    model, layers = vgg()
    with pytest.raises(IndexError), ExpectedGradCAM(model, layers):
        _ = [][0]


def test_another_number_of_targets_than_images_is_refused() -> None:
    model, layers = vgg()
    with pytest.raises(ValueError, match="`targets` for 2 images, but got 1"):
        ExpectedGradCAM(model, layers)(INPUTS, TARGETS[:1])
