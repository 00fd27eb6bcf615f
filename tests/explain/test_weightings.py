"""Each weighting is a method that others have written, with the gradient at the image or the expected one."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torchvision
from captum.attr import GuidedGradCam
from pytorch_grad_cam import EigenGradCAM, GradCAMElementWise, GradCAMPlusPlus, LayerCAM, XGradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from egcam_lightning.explain import Draws, ExpectedGradCAM, Perturbation, sample_draws
from egcam_lightning.explain.explanation import Explanation
from egcam_lightning.explain.guided import guided_grad_cam
from egcam_lightning.explain.perturbation import Weighting
from egcam_lightning.explain.weightings import WEIGHTINGS
from tests.support.maps import relative_error
from tests.support.networks import VGG, Case, seeded
from tests.support.pictures import images

EXACT = 1e-4
THEIRS: dict[Weighting, type] = {
    "gradcam++": GradCAMPlusPlus,
    "xgradcam": XGradCAM,
    "layercam": LayerCAM,
    "rectified": GradCAMElementWise,
    "eigen": EigenGradCAM,
}


def their_map(method: type, model: nn.Module, layer: str, inputs: Tensor, target: Tensor) -> Tensor:
    """``(B, h, w)``: a method's signed map, before it is rectified and scaled."""
    model = copy.deepcopy(model)  # it leaves gradients behind
    targets = [ClassifierOutputTarget(int(t)) for t in target]
    with method(model=model, target_layers=[model.get_submodule(layer)]) as cam:
        cam(inputs, targets)
        parts = cam.activations_and_grads
        activations, gradients = parts.activations[0].cpu().numpy(), parts.gradients[0].cpu().numpy()
        return torch.from_numpy(np.asarray(cam.get_cam_image(inputs, None, targets, activations, gradients, False)))


def assert_same(ours: Tensor, theirs: Tensor, weighting: Weighting) -> None:
    if weighting == "eigen":  # the sign of a component is anyone's
        theirs = theirs.to(ours.device)
        sign = (ours * theirs).flatten(1).sum(1).sign().view(-1, 1, 1)
        theirs = theirs * sign
    assert theirs.abs().amax() > 0
    assert relative_error(ours, theirs) < EXACT


@pytest.mark.parametrize("weighting", THEIRS)
def test_at_the_image_each_is_pytorch_grad_cams(case: Case, weighting: Weighting) -> None:
    explainer = ExpectedGradCAM(case.model, case.layer, Perturbation.grad_cam(), weighting)
    ours = explainer(case.inputs, target=case.target).attribution
    theirs = their_map(THEIRS[weighting], case.model, case.layer, case.inputs, case.target)
    assert_same(ours, theirs, weighting)


@pytest.mark.parametrize(
    ("name", "layer"), [("resnet18", "layer3"), ("squeezenet1_1", "features.8"), ("vgg11", "features.12")]
)
@pytest.mark.parametrize("weighting", THEIRS)
def test_on_real_architectures_each_is_pytorch_grad_cams(name: str, layer: str, weighting: Weighting) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None, num_classes=10).eval()
    inputs, target = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 7])
    ours = ExpectedGradCAM(model, layer, Perturbation.grad_cam(), weighting)(inputs, target=target).attribution
    assert_same(ours, their_map(THEIRS[weighting], model, layer, inputs, target), weighting)


def below(case: Case) -> nn.Module:
    """The VGG up to its layer."""
    return case.model.features[:5]  # type: ignore[index,union-attr]


def behind(case: Case) -> nn.Module:
    """The rest of it."""
    model = case.model
    return nn.Sequential(*list(model.features)[5:], model.avgpool, nn.Flatten(), model.classifier)  # type: ignore[arg-type]


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_expected_gradients_take_the_place_of_the_gradient(
    vgg_case: Case, weighting: Weighting, device: torch.device
) -> None:
    draws = sample_draws(8, 4, range(3))
    ours = ExpectedGradCAM(vgg_case.model, vgg_case.layer, weighting=weighting)(
        vgg_case.inputs, vgg_case.baselines, vgg_case.target, draws=draws
    )
    with torch.no_grad():
        activation, origin = below(vgg_case)(vgg_case.inputs), below(vgg_case)(vgg_case.baselines)
    assert draws.weight is not None
    expected = torch.zeros(3, *activation.shape[2:])
    for place, row, weight in zip(draws.place.to(device), draws.baseline_index, draws.weight.to(device), strict=True):
        difference = activation - origin[row]
        point = (origin[row] + place.view(-1, 1, 1, 1) * difference).requires_grad_()
        score = behind(vgg_case)(point).gather(1, vgg_case.target[:, None]).sum()
        (gradient,) = torch.autograd.grad(score, point)
        expected += weight.view(-1, 1, 1) * WEIGHTINGS[weighting](gradient, difference, activation) / len(draws.place)
    assert relative_error(ours.attribution, expected) < EXACT


@pytest.mark.parametrize("weighting", [name for name in WEIGHTINGS if name != "elementwise"])
def test_only_the_elementwise_weighting_is_complete(vgg_case: Case, weighting: Weighting) -> None:
    def gap(weighting: Weighting) -> float:
        explainer = ExpectedGradCAM(vgg_case.model, vgg_case.layer, weighting=weighting, num_samples=128)
        found = explainer(vgg_case.inputs, vgg_case.baselines, vgg_case.target)
        missing = found.attribution.flatten(1).sum(1) - (found.score - found.baseline_score)
        return float(missing.abs().sum() / (found.score - found.baseline_score).abs().sum())

    assert gap("elementwise") < gap(weighting) / 2


@pytest.mark.parametrize("weighting", ["gradcam++", "xgradcam"])
def test_a_weighting_that_needs_positive_activations_says_so_on_signed_ones(weighting: Weighting) -> None:
    model, inputs = seeded(VGG), images(2)
    with pytest.warns(
        UserWarning, match=rf"{weighting.replace('+', '.')}.*'features.3' have both signs.*behind a ReLU"
    ):
        ExpectedGradCAM(model, "features.3", Perturbation.grad_cam(), weighting)(inputs, target=1)


class Channels(nn.Module):
    """A score that a known weight of each channel's mean makes."""

    weights = torch.tensor([[1.0, -2.0, 0.5, 3.0], [0.0, 1.0, 0.0, -1.0]])

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean((2, 3)) @ self.weights.T


@pytest.mark.parametrize("space", ["activation", "input"])
def test_optimal_weights_are_those_of_a_linear_head(space: str) -> None:
    model = seeded(Channels)
    found = ExpectedGradCAM(model, "layer", Perturbation.expected(space), "optimal", num_samples=256)(
        images(2), images(64, seed=1), torch.tensor([0, 1])
    )
    exact = ExpectedGradCAM(model, "layer", Perturbation.expected(space), "channel", num_samples=256)(
        images(2), images(64, seed=1), torch.tensor([0, 1])
    )
    assert relative_error(found.attribution, exact.attribution) < 0.1
    assert (found.completeness_gap < 0.1).all()


def unexplained(found: Explanation, case: Case, draws: Draws) -> float:
    """The infidelity over full steps from the image to each baseline: what maps leave of the scores' differences."""
    with torch.no_grad():
        scores = case.model(case.baselines)
    wrong = []
    for image, target in enumerate(case.target):
        for row in range(len(case.baselines)):
            mine = draws.baseline_index[:, image] == row
            change = found.score[image] - scores[row, target]
            wrong.append((found.draws[mine, image].mean(0).sum() - change) / change.abs().clamp(min=0.1))
    return float(torch.stack(wrong).square().mean())


def test_optimal_weights_predict_what_the_samples_do_to_the_score_better_than_pooled_gradients(
    vgg_case: Case, device: torch.device
) -> None:
    draws = Draws(**{**vars(sample_draws(128, 4, range(3))), "weight": None})
    with torch.no_grad():
        activation, origin = below(vgg_case)(vgg_case.inputs), below(vgg_case)(vgg_case.baselines)
        place = draws.place[..., None, None, None].to(device)
        points = activation + (1 - place) * (origin[draws.baseline_index] - activation)
        score, scores = (behind(vgg_case)(x)[..., vgg_case.target] for x in (activation, points.flatten(0, 1)))
    change = score.diagonal() - scores.view(128, 3, 3).diagonal(dim1=1, dim2=2)

    def infidelity(weighting: Weighting) -> float:
        explainer = ExpectedGradCAM(vgg_case.model, vgg_case.layer, weighting=weighting)
        found = explainer(vgg_case.inputs, vgg_case.baselines, vgg_case.target, draws=draws)
        predicted = (1 - draws.place) * found.draws.flatten(2).sum(2)  # by moving that far from the image
        return float((predicted - change).square().mean())

    assert infidelity("optimal") < infidelity("channel") / 2


def test_infidelity_along_the_path_vanishes_with_samples_and_only_for_complete_maps(case: Case) -> None:
    """Buono et al., TMLR 2026: completeness governs the optimum."""
    at = (case.inputs, case.baselines, case.target)

    def explained(samples: int, perturbation: Perturbation | None = None) -> tuple[Explanation, Draws]:
        draws = sample_draws(samples, 4, range(3))
        return ExpectedGradCAM(case.model, case.layer, perturbation)(*at, draws=draws), draws

    few, many = explained(16), explained(1024)
    least = unexplained(many[0], case, many[1])
    assert least < 1e-3
    assert least <= unexplained(few[0], case, few[1]) + 1e-9
    # It is zero just where each baseline's own map is complete; every other map of the same shape is worse.
    found, draws = many
    for changed in (found.draws * 1.1, found.draws * 0.9, found.draws.clamp(min=0)):
        other = Explanation(**{**vars(found), "draws": changed})
        assert unexplained(other, case, draws) > max(5 * least, 0.005)


def test_smoothed_gradients_are_worse_along_the_path_than_expected_ones(vgg_case: Case) -> None:
    at, draws = (vgg_case.inputs, vgg_case.baselines, vgg_case.target), sample_draws(64, 4, range(3))

    def infidelity(perturbation: Perturbation) -> float:
        found = ExpectedGradCAM(vgg_case.model, vgg_case.layer, perturbation)(*at, draws=draws)
        return unexplained(found, vgg_case, draws)

    smooth = infidelity(Perturbation(interval=(1, 1), noise=0.25))
    assert infidelity(Perturbation.expected()) < smooth / 4


def test_optimal_weights_without_perturbations_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`interval` or `noise`.*Perturbation.expected\(\)"):
        ExpectedGradCAM(seeded(VGG), "features.4", Perturbation.grad_cam(), "optimal")


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_guided_grad_cam_is_captums(case: Case, mode: str) -> None:
    explainer = ExpectedGradCAM(case.model, case.layer, Perturbation.grad_cam())
    ours = guided_grad_cam(explainer, case.inputs, target=case.target, interpolate_mode=mode)
    twin = copy.deepcopy(case.model)
    theirs = GuidedGradCam(twin, twin.get_submodule(case.layer)).attribute(
        case.inputs.clone(), case.target, interpolate_mode=mode
    )
    assert theirs.abs().amax() > 0
    assert relative_error(ours, theirs.detach()) < EXACT


def test_guided_maps_take_expected_gradients_too_and_leave_the_model_as_it_was(vgg_case: Case) -> None:
    explainer = ExpectedGradCAM(vgg_case.model, vgg_case.layer)
    found = guided_grad_cam(explainer, vgg_case.inputs, vgg_case.baselines, vgg_case.target)
    plain = guided_grad_cam(
        ExpectedGradCAM(vgg_case.model, vgg_case.layer, Perturbation.grad_cam()),
        vgg_case.inputs,
        target=vgg_case.target,
    )
    assert found.shape == vgg_case.inputs.shape
    assert relative_error(found, plain) > 0.1
    assert all(not module._forward_hooks for module in vgg_case.model.modules())


def test_a_model_without_rectifiers_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    with pytest.raises(ValueError, match=r"nn.ReLU modules.*Sequential has none"):
        guided_grad_cam(ExpectedGradCAM(model, "0"), images(2), images(2, seed=1), 1)
