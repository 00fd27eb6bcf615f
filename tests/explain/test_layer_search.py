"""Which layer is explained: the last cut with a grid that matters, or the one that was asked for."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from egcam_lightning.explain import ExpectedGradCAM, Perturbation
from tests.support.maps import pooled_gap
from tests.support.networks import CLASSES, VGG, Pooled, ResNet, UNet, ViT, Wrapped, seeded
from tests.support.pictures import images


def found(model: nn.Module, inputs: Tensor | None = None, target_layer: str = "last", **kwargs: Any) -> str:
    """The layer that ``"last"`` or ``"auto"`` takes without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return ExpectedGradCAM(model, target_layer, **kwargs).find(images(4) if inputs is None else inputs)


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        (VGG, "features.7"),
        (ResNet, "layer2"),
        (Pooled, "features"),
        (UNet, "merge"),
        (ViT, "blocks.0"),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_last_is_the_last_cut_whose_positions_matter(architecture: type, expected: str, channels: int) -> None:
    model = seeded(lambda: architecture(channels))
    assert found(model, images(4, channels)) == expected


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        (VGG, "features.4+features.7"),
        (ResNet, "layer1+layer2"),
        (Pooled, "features.1+features"),
        (UNet, "merge"),  # no stage before it has a finer grid
        (ViT, "blocks.0+blocks.1"),  # nothing but the class token counts behind the last one
    ],
)
def test_auto_is_the_mean_over_the_last_cut_and_the_deepest_of_the_stage_before(
    architecture: type, expected: str
) -> None:
    assert found(seeded(architecture), target_layer="auto") == expected


def test_auto_takes_a_block_at_a_quarter_and_one_at_three_quarters_of_a_transformer() -> None:
    assert found(seeded(lambda: ViT(depth=12)), target_layer="auto") == "blocks.2+blocks.9"


def test_auto_takes_one_layer_where_the_last_one_sees_fine_enough() -> None:
    model = seeded(ResNet)
    assert found(model, images(4, size=(48, 64)), target_layer="auto") == "layer1+layer2"  # 12 x 16
    assert found(model, images(4, size=(52, 64)), target_layer="auto") == "layer2"  # 13 x 16


@pytest.mark.parametrize(
    "perturbation",
    [
        Perturbation.grad_cam(),
        Perturbation.hires_cam(),
        Perturbation(interval=(0.5, 1)),
        Perturbation(noise=0.1),
        Perturbation(weighting="channel"),
        Perturbation(space="input"),
    ],
    ids=str,
)
def test_auto_adds_up_no_maps_that_are_not_complete(perturbation: Perturbation) -> None:
    assert found(seeded(ResNet), target_layer="auto", perturbation=perturbation) == "layer2"


def test_last_is_the_relu_before_the_last_pooling_not_the_adaptive_one() -> None:
    model = seeded(VGG)
    explainer = ExpectedGradCAM(model, "last")
    assert explainer.find(images(2)) == "features.7"
    assert explainer.grid == (6, 8)  # the adaptive pooling's is 7 x 7, copied from 3 x 4


def test_auto_finds_the_same_with_an_untrained_head_of_zeros() -> None:
    for architecture, head in ((ResNet, "fc"), (VGG, "classifier.2"), (ViT, "head")):
        model = seeded(architecture)
        expected = found(model)
        nn.init.zeros_(model.get_submodule(head).weight)
        nn.init.zeros_(model.get_submodule(head).bias)
        assert found(model) == expected


def test_auto_leaves_out_a_map_a_class_before_it_is_pooled() -> None:
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
    model = seeded(lambda: nn.Sequential(body, nn.Conv2d(8, CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    assert found(model) == "0"


def test_auto_leaves_out_the_logits_of_a_segmentation_network() -> None:
    def build() -> nn.Module:
        segmentation = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, CLASSES, 1), nn.Upsample(scale_factor=2)
        )
        return Wrapped(segmentation)

    explainer = ExpectedGradCAM(
        seeded(build), score=lambda output, target: output.mean((2, 3)).gather(1, target[:, None])[:, 0]
    )
    assert explainer.find(images(4)) == "model.1"
    assert explainer(images(3), images(4, seed=1), target=2).attribution.shape == (3, 12, 16)


def test_auto_takes_a_map_a_class_where_there_is_nothing_else() -> None:
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, CLASSES, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    assert found(model) == "1"


def test_auto_takes_no_layer_that_a_skip_connection_bypasses() -> None:
    model = seeded(UNet)
    model.merge.requires_grad_(False)
    model.fc = nn.Linear(12, CLASSES)
    # Classified from the bottom alone, the bottom is the last cut; the decoder is not used at all.
    model.forward = lambda x: model.fc(model.bottom(model.down(x)).mean((2, 3)))  # type: ignore[method-assign]
    assert found(model) == "bottom"
    assert found(seeded(UNet)) == "merge"


def test_auto_takes_the_largest_grid_with_a_warning_where_none_has_four_by_four() -> None:
    model = seeded(
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 8, 8, 8), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 6, 2)),
            *(nn.Flatten(), nn.Linear(6, 5)),
        )
    )
    explainer = ExpectedGradCAM(model)
    with pytest.warns(UserWarning, match=r"4x4; taking 1 \(8, 3, 4\), the largest"):
        assert explainer.find(images(4)) == "1"


def test_auto_says_so_where_nothing_is_a_cut() -> None:
    class Bypassed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 6, 3, padding=1)
            self.b = nn.Conv2d(3, 6, 3, padding=1)
            self.fc = nn.Linear(6, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc((self.a(x).relu() + self.b(x).relu()).mean((2, 3)))

    with pytest.warns(UserWarning, match=r"No layer was found that nothing bypasses.*taking the last one.* b \(6, 24"):
        assert ExpectedGradCAM(seeded(Bypassed)).find(images(4)) == "b"


def test_auto_without_any_grid_raises() -> None:
    model = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 32, 8), nn.ReLU(), nn.Linear(8, CLASSES)))
    with pytest.raises(ValueError, match=r"No layer of the model has an output with a grid.*`target_layer`"):
        ExpectedGradCAM(model).find(images(2))


def test_auto_passes_over_features_that_the_model_detaches() -> None:
    class Probe(nn.Module):
        """A classifier with a convolution of its own on features that it does not train."""

        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
            self.pool = nn.AdaptiveAvgPool2d(2)
            self.fc = nn.Linear(32, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.pool(self.backbone(x).detach()).flatten(1))

    model = seeded(Probe)
    with pytest.warns(UserWarning, match="No layer was found"):
        ExpectedGradCAM(model).find(images(4))
    for layer in ("backbone", "backbone.0"):
        with pytest.raises(ValueError, match=rf"No gradient of the score reaches the layer '{layer}'.*detaches"):
            ExpectedGradCAM(model, layer)(images(3), images(4, seed=1), 1)


def test_a_name_and_its_module_are_the_same_layer() -> None:
    model = seeded(ResNet)
    for target in ("layer1.1", model.layer1[1]):
        explainer = ExpectedGradCAM(model, target, num_samples=4)
        explanation = explainer(images(2), images(4, seed=1), 1)
        assert explanation.layer == explainer.layer == "layer1.1"
        assert explanation.attribution.shape == (2, 12, 16)


def test_an_unknown_name_raises_with_close_ones_and_the_candidates() -> None:
    with pytest.raises(ValueError, match=r"no layer 'layr2'.*Did you mean .*'layer2'") as caught:
        ExpectedGradCAM(seeded(ResNet), "layr2").find(images(2))
    assert "layer2 (16, 6, 8)" in str(caught.value)
    assert "layer1 (12, 12, 16)" in str(caught.value)


def test_a_module_of_another_model_raises_with_the_candidates() -> None:
    with pytest.raises(ValueError, match=r"Conv2d is not a module of the model.*layer2 \(16, 6, 8\)"):
        ExpectedGradCAM(seeded(ResNet), nn.Conv2d(3, 8, 3)).find(images(2))


def test_a_layer_without_a_grid_raises() -> None:
    with pytest.raises(
        ValueError, match=r"'fc' has the shape \(2, 5\), from which no grid.*\(24, 32\).*reshape"
    ) as caught:
        ExpectedGradCAM(seeded(ResNet), "fc").find(images(2))
    assert "layer2 (16, 6, 8)" in str(caught.value)


def test_a_layer_called_twice_or_never_raises() -> None:
    class Reused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.idle = nn.Conv2d(3, 3, 3)
            self.body = nn.Conv2d(3, 6, 3, padding=1)
            self.fc = nn.Linear(6, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.body(self.conv(self.conv(x))).mean((2, 3)))

    model = seeded(Reused)
    with pytest.raises(ValueError, match=r"'conv' once, but it was called 2 times.*`target_layer`"):
        ExpectedGradCAM(model, "conv").find(images(2))
    with pytest.raises(ValueError, match=r"'idle' once, but it was called 0 times"):
        ExpectedGradCAM(model, "idle").find(images(2))
    assert found(model) == "body"


def test_compiled_models_have_clean_names() -> None:
    plain = seeded(ResNet)
    whole = torch.compile(seeded(ResNet), backend="eager")
    inner = Wrapped(torch.compile(seeded(ResNet), backend="eager"))
    assert found(whole) == "layer2"
    assert found(inner) == "model.layer2"
    expected = ExpectedGradCAM(plain, "layer1", num_samples=4)(images(2), images(4, seed=1), 1)
    for model, name in ((whole, "layer1"), (inner, "model.layer1"), (whole, "_orig_mod.layer1")):
        explanation = ExpectedGradCAM(model, name, num_samples=4)(images(2), images(4, seed=1), 1)
        assert "_orig_mod" not in explanation.layer
        torch.testing.assert_close(explanation.draws, expected.draws)


def test_images_of_another_size_keep_the_layer_and_have_a_grid_of_their_own() -> None:
    explainer = ExpectedGradCAM(seeded(ResNet), "last", num_samples=4)
    for size, grid in (((24, 32), (6, 8)), ((40, 16), (10, 4)), ((16, 16), (4, 4)), ((8, 8), (2, 2))):
        explanation = explainer(images(2, size=size), images(4, size=size), 1)
        assert explanation.layer == "layer2"
        assert explanation.attribution.shape == (2, *grid)
        assert explanation.heatmap.shape == (2, *size)


def test_a_transformer_is_complete_with_what_its_class_token_carries() -> None:
    explainer = ExpectedGradCAM(seeded(ViT), "last", num_samples=256)
    explanation = explainer(images(4), images(8, seed=1), 2)
    assert explanation.layer == "blocks.0"
    assert explanation.attribution.shape == (4, 6, 8)
    assert pooled_gap(explanation) < 0.02
    share = explanation.off_grid.abs().sum() / (explanation.score - explanation.baseline_score).abs().sum()
    assert share > 0.05  # the class token has a part of its own, which no place on the image shows
    assert explanation.attribution.abs().sum() > 0


def test_behind_the_last_block_of_a_transformer_only_the_class_token_counts() -> None:
    explanation = ExpectedGradCAM(seeded(ViT), "blocks.2", num_samples=64)(images(4), images(8, seed=1), 2)
    assert (explanation.attribution == 0).all()
    torch.testing.assert_close(explanation.off_grid, explanation.score - explanation.baseline_score, rtol=0.05, atol=0)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.real("its parameters cannot be lazy")
def test_a_scripted_layer_is_refused_by_name_and_left_out_of_the_search() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.LazyLinear(2))
    x = torch.rand(3, 3, 8, 8)
    model(x)
    model[2] = torch.jit.script(model[2])
    explainer = ExpectedGradCAM(model, num_samples=2)
    assert explainer(x, torch.rand(2, 3, 8, 8), 1).layer == "1"
    with pytest.raises(ValueError, match=r"layer '2' is scripted.*another `target_layer`.*1 \(4, 6, 6\)"):
        ExpectedGradCAM(model, "2")(x, torch.rand(2, 3, 8, 8), 1)
    assert not any(vars(module).get("_forward_hooks") for module in (model, *model[:2]))


@pytest.mark.real("its parameters cannot be lazy")
def test_a_model_without_values_is_refused_and_left_without() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(2))
    with pytest.raises(ValueError, match=r"parameter '0.weight' has no values yet. Call the model with a batch first"):
        ExpectedGradCAM(model)(torch.rand(3, 3, 8, 8), torch.rand(2, 3, 8, 8), 1)
    assert model[0].has_uninitialized_params()
    assert model[1].has_uninitialized_params()
    assert model(torch.rand(3, 3, 8, 8)).shape == (3, 2)


def test_auto_takes_no_padded_grid() -> None:
    model = seeded(
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(8, 12, 3, 2), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, CLASSES)),
        )
    )
    assert found(model, target_layer="auto") == "1+4"
