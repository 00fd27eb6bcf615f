"""Where a layer's positions lie on the image."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from egcam_lightning.explain import ExpectedGradCAM, Perturbation
from egcam_lightning.explain.token_layout import Layout, infer_layout
from tests.support.maps import relative_error
from tests.support.networks import CLASSES, VGG, ViT, Wrapped, seeded
from tests.support.pictures import images

repeatable = settings(deadline=None, derandomize=True, database=None, max_examples=100)
sides = st.integers(3, 20)


@repeatable
@given(sides, sides, st.sampled_from([2, 4, 8, 16, 32]), st.integers(24, 512))
def test_channels_are_told_from_positions_by_the_images_shape(height: int, width: int, stride: int, k: int) -> None:
    assume(k > 2 * max(height, width))
    size = (height * stride, width * stride)
    assert infer_layout((k, height, width), size) == Layout((height, width))
    assert infer_layout((height, width, k), size) == Layout((height, width), channels_last=True)


@repeatable
@given(st.integers(2, 16), st.integers(2, 16), st.sampled_from([4, 8, 14, 16, 32]), st.sampled_from([0, 1]))
def test_tokens_fill_the_grid_of_the_patches(height: int, width: int, patch: int, prefix: int) -> None:
    size = (height * patch, width * patch)
    layout = infer_layout((height * width + prefix, 33), size)
    assert layout is not None
    # Another patch size may fit the same number with another prefix, but never with a smaller one.
    assert layout.prefix <= prefix
    if layout.prefix == prefix:
        assert layout.grid == (height, width)


@pytest.mark.parametrize(
    ("shape", "size", "grid", "prefix"),
    [
        ((197, 768), (224, 224), (14, 14), 1),
        ((198, 192), (224, 224), (14, 14), 2),
        ((261, 768), (224, 224), (16, 16), 5),  # class token and four registers
        ((257, 1024), (224, 224), (16, 16), 1),
        ((50, 768), (224, 224), (7, 7), 1),
        ((577, 768), (384, 384), (24, 24), 1),
        ((49, 1024), (224, 224), (7, 7), 0),
        ((65, 64), (32, 32), (8, 8), 1),
        ((12 * 20 + 1, 64), (192, 320), (12, 20), 1),
    ],
)
def test_token_grids_of_published_models(
    shape: tuple[int, int], size: tuple[int, int], grid: tuple[int, int], prefix: int
) -> None:
    assert infer_layout(shape, size) == Layout(grid, channels_last=True, prefix=prefix)


@pytest.mark.parametrize("shape", [(512,), (3,), (2, 3, 4, 5, 6), (195, 64)])
def test_what_fills_no_grid_has_none(shape: tuple[int, ...]) -> None:
    assert infer_layout(shape, (224, 224)) is None


def test_positions_are_read_row_by_row() -> None:
    grid = torch.arange(2 * 5 * 3 * 4, dtype=torch.float32).reshape(2, 5, 3, 4)
    assert torch.equal(Layout((3, 4)).to_grid(grid), grid)
    assert torch.equal(Layout((3, 4), channels_last=True).to_grid(grid.movedim(1, -1)), grid)
    tokens = torch.cat([torch.full((2, 2, 5), -1.0), grid.flatten(2).transpose(1, 2)], 1)
    assert torch.equal(Layout((3, 4), channels_last=True, prefix=2).to_grid(tokens), grid)


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.turn = nn.Identity()
        self.norm = nn.LayerNorm(8)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.turn(self.first(x).movedim(1, -1))
        return self.fc(torch.tanh(self.norm(x)).mean((1, 2)))


@pytest.mark.parametrize("perturbation", [Perturbation(), Perturbation.grad_cam()])
def test_channels_last_gives_the_map_of_channels_first(perturbation: Perturbation) -> None:
    model = seeded(ChannelsLast)
    first, last = (
        ExpectedGradCAM(model, layer, perturbation, num_samples=8)(images(2), images(4, seed=1), 1)
        for layer in ("first", "turn")
    )
    assert last.attribution.shape == (2, 12, 16)
    assert relative_error(last.draws, first.draws) < 1e-5


def test_a_transform_of_ones_own_replaces_the_inferred_layout() -> None:
    model = seeded(ViT)
    baselines = images(4, seed=1)

    def transform(tokens: Tensor) -> Tensor:
        return tokens[:, 1:].transpose(1, 2).reshape(len(tokens), -1, 6, 8)

    for perturbation in (Perturbation(), Perturbation(noise=0.3)):  # the unit of the noise is over positions too
        inferred = ExpectedGradCAM(model, "blocks.1", perturbation, num_samples=4)(images(2), baselines, 1)
        own = ExpectedGradCAM(model, "blocks.1", perturbation, num_samples=4, reshape_transform=transform)(
            images(2), baselines, 1
        )
        assert relative_error(own.draws, inferred.draws) < 1e-5
        torch.testing.assert_close(own.off_grid, inferred.off_grid, rtol=1e-3, atol=1e-5)


def test_a_transform_that_makes_no_grid_raises() -> None:
    with pytest.raises(ValueError, match=r"4 dimensions .*\(2, 49, 16\) it made \(2, 16, 49\)"):
        ExpectedGradCAM(seeded(ViT), "blocks.1", reshape_transform=lambda t: t.transpose(1, 2)).find(images(2))


@pytest.mark.parametrize(
    "pack",
    [lambda a: (a, 1), lambda a: [a], lambda a: {"mask": None, "last": a}],
    ids=["tuple", "list", "dict"],
)
def test_layers_that_return_more_than_a_tensor(pack: object) -> None:
    model = seeded(VGG)

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = Wrapped(model.features[:5], pack)

        def forward(self, x: Tensor) -> Tensor:
            packed = self.stem(x)
            features = packed["last"] if isinstance(packed, dict) else packed[0]
            return model.classifier(model.avgpool(model.features[5:](features)).flatten(1))

    for space in ("activation", "input"):
        perturbation = Perturbation(space=space)
        expected = ExpectedGradCAM(model, "features.4", perturbation, num_samples=4)(images(2), images(4, seed=1), 1)
        ours = ExpectedGradCAM(Packed(), "stem", perturbation, num_samples=4)(images(2), images(4, seed=1), 1)
        assert relative_error(ours.draws, expected.draws) < 1e-5


def test_volumes_have_maps_of_their_own_shape() -> None:
    model = seeded(
        lambda: nn.Sequential(
            *(nn.Conv3d(1, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3))
        )
    )
    volumes = torch.rand(6, 1, 8, 12, 10, generator=torch.Generator().manual_seed(0))
    explanation = ExpectedGradCAM(model, num_samples=4)(volumes[:2], volumes[2:], 1)
    assert explanation.attribution.shape == (2, 4, 6, 5)
    assert explanation.heatmap.shape == (2, 8, 12, 10)
    assert (explanation.completeness_gap < 1e-4).all()
