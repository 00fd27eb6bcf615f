"""Which layers are cuts, what happens where one is not, and what runs behind and before it."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from egcam_lightning.explain import ExpectedGradCAM, Perturbation, sample_draws
from egcam_lightning.explain.split_model import SplitModel, host_image_like
from tests.explain.captum_oracles import captum_gradient_shap
from tests.support.maps import pooled_gap, relative_error
from tests.support.networks import VGG, Case, ResNet, UNet, ViT, Wrapped, seeded
from tests.support.pictures import images

NO_CUT = "not a cut of the network"


def holds(model: nn.Module, layer: str, count: int = 4) -> bool:
    inputs = images(count)
    cut = SplitModel(model.get_submodule(layer), layer, model)
    return cut.holds(*cut.capture(inputs), host_image_like(inputs))


@pytest.mark.parametrize(
    ("architecture", "layer"),
    [
        *((VGG, f"features.{i}") for i in range(9)),
        *((ResNet, layer) for layer in ("conv1", "relu", "layer1.0", "layer1", "layer2.0.relu2", "layer2", "avgpool")),
        *((UNet, layer) for layer in ("down", "merge.0", "merge")),
        *((ViT, layer) for layer in ("patch", "blocks.0", "blocks.1", "blocks.2", "norm")),
    ],
)
def test_what_nothing_bypasses_is_a_cut(architecture: type, layer: str) -> None:
    assert holds(seeded(architecture), layer)


@pytest.mark.parametrize(
    ("architecture", "layer"),
    [
        *((ResNet, f"layer2.1.{part}") for part in ("conv1", "bn1", "relu1", "conv2", "bn2", "shortcut")),
        *((UNet, layer) for layer in ("bottom", "bottom.1", "up")),
        *((ViT, f"blocks.1.{part}") for part in ("norm1", "norm2", "mlp", "mlp.1")),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_something_bypasses_is_none_in_any_precision(architecture: type, layer: str, dtype: torch.dtype) -> None:
    model = Wrapped(seeded(architecture).to(dtype), before=lambda x: x.to(dtype))
    assert not holds(model, f"model.{layer}")


def test_cuts_hold_in_half_precision_whatever_the_logits_are_converted_to() -> None:
    for after in (lambda y: y, lambda y: y.float()):
        model = Wrapped(seeded(VGG).bfloat16(), after, before=lambda x: x.bfloat16())
        assert holds(model, "model.features.4")


class RemembersBatchSize(nn.Module):
    """Reads the batch size off its input, and shapes its features by it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = seeded(VGG)

    def forward(self, x: Tensor) -> Tensor:
        features = self.model.avgpool(self.model.features(x))
        return self.model.classifier(features.reshape(x.shape[0], -1))


def test_model_that_remembers_its_batch_size_falls_back_to_input_paths_with_one_warning() -> None:
    model = RemembersBatchSize()
    case = Case(model, "model.features.4", images(3), images(4, seed=1), torch.tensor([1, 4, 2]))
    theirs, draws = captum_gradient_shap(case, samples=5, seed=2)
    explainer = ExpectedGradCAM(model, case.layer)
    with pytest.warns(UserWarning, match=NO_CUT) as caught:
        ours = [explainer(case.inputs, case.baselines, case.target, draws=draws) for _ in range(3)]
    assert sum(NO_CUT in str(w.message) for w in caught) == 1
    for explanation in ours:
        assert relative_error(explanation.attribution, theirs) < 1e-4


def test_layer_inside_a_residual_branch_falls_back_to_input_paths() -> None:
    case = Case(seeded(ResNet), "layer2.1.bn1", images(3), images(4, seed=1), torch.tensor([1, 4, 2]))
    without = seeded(ResNet)
    without.layer2[1].relu1 = nn.ReLU()  # captum's hooks do not agree with an in-place ReLU behind the layer
    theirs, draws = captum_gradient_shap(replace(case, model=without), samples=5, seed=2)
    with pytest.warns(UserWarning, match=NO_CUT):
        ours = ExpectedGradCAM(case.model, case.layer)(case.inputs, case.baselines, case.target, draws=draws)
    assert relative_error(ours.attribution, theirs) < 1e-4


@pytest.mark.usefixtures("no_warnings")
def test_gradient_at_the_image_needs_no_cut_and_warns_of_none() -> None:
    for perturbation in (Perturbation.grad_cam(), Perturbation.hires_cam(), Perturbation.integrated_grad_cam()):
        ExpectedGradCAM(seeded(ResNet), "layer2.1.bn1", perturbation, num_samples=2)(images(3), target=1)


@pytest.mark.usefixtures("no_warnings")
def test_head_of_zeros_explains_nothing_and_says_no_falsehood_about_cuts() -> None:
    model = seeded(VGG)
    nn.init.zeros_(model.classifier[2].weight)
    explanation = ExpectedGradCAM(model, "features.4", num_samples=4)(images(3), images(4, seed=1), 1)
    assert (explanation.attribution == 0).all()
    assert (explanation.heatmap == 0).all()


@pytest.mark.parametrize(
    "perturbation",
    [Perturbation(), Perturbation(baseline="zeros"), Perturbation(baseline="none", interval=(1, 1), noise=0.3)],
    ids=lambda p: p.baseline,
)
@pytest.mark.usefixtures("no_warnings")
def test_an_image_alone_is_explained_as_it_is_among_others(vgg_case: Case, perturbation: Perturbation) -> None:
    explainer = ExpectedGradCAM(vgg_case.model, vgg_case.layer, perturbation, num_samples=6)
    together = explainer(vgg_case.inputs, vgg_case.baselines, vgg_case.target)
    alone = explainer(vgg_case.inputs[:1], vgg_case.baselines, vgg_case.target[:1])
    assert relative_error(alone.draws, together.draws[:, :1]) < 1e-4
    assert relative_error(alone.draws, together.draws[:, 1:2]) > 0.1


@pytest.mark.usefixtures("no_warnings")
def test_an_image_and_a_baseline_alone_still_tell_a_cut(vgg_case: Case) -> None:
    explainer = ExpectedGradCAM(vgg_case.model, vgg_case.layer)
    draws, both = sample_draws(6, 1, [0]), vgg_case.baselines[:1].expand(2, -1, -1, -1)
    alone = explainer(vgg_case.inputs[:1], vgg_case.baselines[:1], vgg_case.target[:1], draws=draws)
    twice = explainer(vgg_case.inputs[:1], both, vgg_case.target[:1], draws=draws)
    assert explainer.is_fast(vgg_case.inputs[:1])
    assert relative_error(twice.draws, alone.draws) < 1e-4


def test_images_that_are_all_the_same_and_of_one_colour_still_tell_a_cut() -> None:
    for inputs in (torch.zeros(4, 3, 24, 32), images(1).expand(4, -1, -1, -1)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert ExpectedGradCAM(seeded(ResNet), "last").find(inputs) == "layer2"
        with pytest.warns(UserWarning, match=NO_CUT):
            ExpectedGradCAM(seeded(ResNet), "layer2.1.bn1", Perturbation(baseline="zeros"), num_samples=2)(
                inputs, target=1
            )


class InPlaceBehind(nn.Module):
    """Changes the layer's output in place, in every way there is, right behind it."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 6, 3, 2, 1)
        self.head = nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        a = self.layer(x)
        if self.in_place:
            a += 0.5
            a.mul_(2)
            a[:, 0] = 0
            nn.functional.relu_(a)
        else:
            keep = torch.ones(6)
            keep[0] = 0
            a = ((a + 0.5) * 2 * keep[:, None, None]).relu()
        return self.head(a)


@pytest.mark.parametrize("space", ["activation", "input"])
@pytest.mark.real("its parameters cannot be lazy")
def test_in_place_operations_behind_the_layer_corrupt_nothing(space: str) -> None:
    def build(in_place: bool) -> nn.Module:
        def make() -> nn.Module:
            model = InPlaceBehind(in_place)
            model(images(1))
            return model

        return seeded(make)

    plain, in_place = (
        ExpectedGradCAM(build(flag), "layer", Perturbation(space=space), num_samples=8)(
            images(3), images(4, seed=1), torch.tensor([1, 4, 2])
        )
        for flag in (False, True)
    )
    assert relative_error(in_place.draws, plain.draws) < 1e-5
    assert pooled_gap(in_place) == pytest.approx(pooled_gap(plain), rel=1e-3)


class LimitedMemory(nn.Module):
    """Runs out of memory on more than ``limit`` rows, behind its features or before them."""

    def __init__(self, limit: int, error: Exception, early: bool = False) -> None:
        super().__init__()
        self.model = seeded(VGG)
        self.limit, self.error, self.early = limit, error, early

    def forward(self, x: Tensor) -> Tensor:
        features = self.model.features(x)
        if len(x if self.early else features) > self.limit:
            raise self.error
        return self.model.classifier(self.model.avgpool(features).flatten(1))


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
@pytest.mark.parametrize("space", ["activation", "input"])
@pytest.mark.parametrize("limit", [4, 5])
def test_chunks_that_do_not_fit_are_halved_and_give_the_same_values(error: Exception, space: str, limit: int) -> None:
    inputs, baselines = images(9), images(6, seed=1)

    def explain(model: nn.Module) -> tuple[ExpectedGradCAM, Tensor]:
        explainer = ExpectedGradCAM(model, "model.features.4", Perturbation(space=space), num_samples=6)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return explainer, explainer(inputs, baselines, 1).draws

    whole = explain(LimitedMemory(10**6, error))[1]
    explainer, halved = explain(LimitedMemory(limit, error))
    assert relative_error(halved, whole) < 1e-4
    assert explainer.chunk_size <= limit


def test_what_does_not_fit_even_alone_raises_the_models_own_error() -> None:
    model = LimitedMemory(10, torch.OutOfMemoryError("no memory at all"))
    explainer = ExpectedGradCAM(model, "model.features.4", num_samples=2)
    explainer.find(images(4))
    model.limit = 0
    with pytest.raises(torch.OutOfMemoryError, match="no memory at all"):
        explainer(images(4), images(2, seed=1), 1)


def test_errors_that_are_not_about_memory_are_not_tried_again() -> None:
    model = LimitedMemory(4, RuntimeError("a mistake"))
    with pytest.raises(RuntimeError, match="a mistake"):
        ExpectedGradCAM(model, "model.features.4", num_samples=2)(images(9), images(4, seed=1), 1)


class BypassedWhereBright(nn.Module):
    """Takes a way round the layer with bright images alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer(x).mean((2, 3))) + (x.mean((1, 2, 3)) - 0.6).relu()[:, None]


@pytest.mark.parametrize("bright", [False, True])
def test_what_is_announced_is_what_runs(bright: bool) -> None:
    inputs = images(4) * torch.tensor([1.0, 0.9, 0.8, 1.8 if bright else 0.7]).view(-1, 1, 1, 1)
    explainer = ExpectedGradCAM(seeded(BypassedWhereBright), "layer", num_samples=2)
    announced = explainer.is_fast(inputs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        explainer(inputs, images(2, seed=1), 1)
    assert announced is not bright
    assert any(NO_CUT in str(warning.message) for warning in caught) is bright
