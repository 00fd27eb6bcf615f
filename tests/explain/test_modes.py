"""Models as they come: frozen, under no_grad, under inference mode, in half precision, compiled, checkpointed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from egcam_lightning.explain import ExpectedGradCAM, Perturbation
from egcam_lightning.explain.explanation import Explanation
from tests.support.maps import rank_correlation, relative_error
from tests.support.networks import VGG, ResNet, Wrapped, seeded
from tests.support.pictures import images

PERTURBATIONS = [Perturbation(), Perturbation.expected("input"), Perturbation.grad_cam()]


def explain(model: nn.Module, perturbation: Perturbation, layer: str = "layer1", **kwargs: Any) -> Explanation:
    explainer = ExpectedGradCAM(model, layer, perturbation, num_samples=8, **kwargs)
    return explainer(images(3), images(4, seed=1), torch.tensor([1, 4, 2]))


@pytest.fixture(params=PERTURBATIONS, ids=lambda p: f"{p.space}-{p.baseline}")
def perturbation(request: pytest.FixtureRequest) -> Perturbation:
    return request.param


@pytest.fixture
def expected(perturbation: Perturbation) -> Tensor:
    return explain(seeded(ResNet), perturbation).draws


class OwnNoGrad(nn.Module):
    """Computes its backbone under a ``no_grad`` of its own, as people do to freeze it."""

    def __init__(self, decorated: bool) -> None:
        super().__init__()
        self.model = seeded(ResNet)
        self.decorated = decorated

    @torch.no_grad()
    def backbone(self, x: Tensor) -> Tensor:
        return self.model.layer2(self.model.layer1(self.model.relu(self.model.bn1(self.model.conv1(x)))))

    def forward(self, x: Tensor) -> Tensor:
        if self.decorated:
            x = self.backbone(x)
        else:
            with torch.no_grad():
                x = self.model.layer2(self.model.layer1(self.model.relu(self.model.bn1(self.model.conv1(x)))))
        return self.model.fc(self.model.avgpool(x).flatten(1))


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("decorated", [True, False])
def test_backbone_under_the_models_own_no_grad(
    perturbation: Perturbation, expected: Tensor, frozen: bool, decorated: bool
) -> None:
    model = OwnNoGrad(decorated).requires_grad_(not frozen)
    ours = explain(model, perturbation, "model.layer1").draws
    assert relative_error(ours, expected) < 1e-5
    assert ExpectedGradCAM(model, "last").find(images(2)) == "model.layer2"


@pytest.mark.parametrize("part", ["layer1", "layer2", ""])
def test_frozen_parameters(perturbation: Perturbation, expected: Tensor, part: str) -> None:
    model = seeded(ResNet)
    model.get_submodule(part).requires_grad_(False)
    assert torch.equal(explain(model, perturbation).draws, expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_mode(perturbation: Perturbation, expected: Tensor, mode: Any) -> None:
    model = seeded(ResNet)
    explainer = ExpectedGradCAM(model, "layer1", perturbation, num_samples=8)
    with mode():
        inputs, baselines, target = images(3), images(4, seed=1), torch.tensor([1, 4, 2])  # tensors made in the mode
        ours = explainer(inputs, baselines, target)
        assert torch.equal(ours.draws, expected)
        assert ExpectedGradCAM(model, "last").find(inputs) == "layer2"


def test_training_mode_is_explained_in_evaluation_mode(perturbation: Perturbation, expected: Tensor) -> None:
    assert torch.equal(explain(seeded(ResNet).train(), perturbation).draws, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("convert_back", [True, False])
def test_half_precision_gives_the_map_of_float32(
    perturbation: Perturbation, expected: Tensor, dtype: torch.dtype, convert_back: bool
) -> None:
    model = Wrapped(
        seeded(ResNet).to(dtype),
        after=lambda y: y.float() if convert_back else y,
        before=lambda x: x.to(dtype),
    )
    ours = explain(model, perturbation, "model.layer1")
    assert ours.draws.dtype == ours.score.dtype == torch.float32
    assert rank_correlation(ours.attribution, expected.mean(0)) > 0.97
    assert ExpectedGradCAM(model, "last").find(images(4)) == "model.layer2"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_inputs_of_the_models_own_precision(dtype: torch.dtype) -> None:
    model = seeded(ResNet).to(dtype)
    explainer = ExpectedGradCAM(model, "layer1", num_samples=8)
    ours = explainer(images(3).to(dtype), images(4, seed=1).to(dtype), torch.tensor([1, 4, 2]))
    expected = explain(seeded(ResNet), Perturbation()).attribution
    assert ours.attribution.dtype == torch.float32
    assert rank_correlation(ours.attribution, expected) > 0.97


def test_autocast_around_the_call() -> None:
    model = seeded(ResNet)
    expected = explain(model, Perturbation())
    with torch.autocast("cpu", torch.bfloat16):
        ours = explain(model, Perturbation())
    assert rank_correlation(ours.attribution, expected.attribution) > 0.97


@pytest.mark.parametrize("whole", [True, False])
def test_compiled_models_are_explained_like_plain_ones(
    perturbation: Perturbation, expected: Tensor, whole: bool
) -> None:
    model = seeded(ResNet)
    compiled = torch.compile(model if whole else Wrapped(model), backend="aot_eager")
    with torch.no_grad():
        before = compiled(images(2))
    ours = explain(compiled, perturbation, "layer1" if whole else "model.layer1")
    assert relative_error(ours.draws, expected) < 1e-5
    with torch.no_grad():
        assert torch.equal(compiled(images(2)), before)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_activations(perturbation: Perturbation, expected: Tensor, reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = seeded(ResNet)

        def forward(self, x: Tensor) -> Tensor:
            x = self.model.relu(self.model.bn1(self.model.conv1(x)))
            for part in (self.model.layer1, self.model.layer2):
                x = checkpoint(part, x, use_reentrant=reentrant)
            return self.model.fc(self.model.avgpool(x).flatten(1))

    assert relative_error(explain(Checkpointed(), perturbation, "model.layer1").draws, expected) < 1e-5


def test_whole_number_images_that_the_model_normalises_itself() -> None:
    model = Wrapped(seeded(ResNet), before=lambda x: x.float() / 255)
    inputs, baselines = (images(3) * 255).to(torch.uint8), (images(4, seed=1) * 255).to(torch.uint8)
    floats = ExpectedGradCAM(seeded(ResNet), "layer1", num_samples=8)(inputs / 255, baselines / 255, 1)
    ours = ExpectedGradCAM(model, "model.layer1", num_samples=8)(inputs, baselines, 1)
    assert relative_error(ours.draws, floats.draws) < 1e-5
    noisy = ExpectedGradCAM(model, "model.layer1", Perturbation.smooth_grad_cam(2.0), num_samples=8)(inputs, target=1)
    clamped = Wrapped(seeded(ResNet), before=lambda x: x.clamp(0, 1))  # what bytes cannot hold does not wrap around
    floats = ExpectedGradCAM(clamped, "model.layer1", Perturbation.smooth_grad_cam(2.0), num_samples=8)(
        inputs / 255, target=1
    )
    assert relative_error(noisy.draws, floats.draws) < 0.05


def test_a_model_that_gives_nan_has_nan_in_its_map_and_none_in_its_heatmap() -> None:
    model = seeded(VGG)
    with torch.no_grad():
        model.classifier[0].weight[0, 0] = torch.nan
    explanation = ExpectedGradCAM(model, "features.4", num_samples=4)(images(2), images(4, seed=1), 1)
    assert explanation.score.isnan().all()
    assert explanation.attribution.isnan().any()
    assert explanation.heatmap.isfinite().all()
