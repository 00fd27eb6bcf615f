"""Grids of tokens that are not square, with tokens before them that have no place, and channels last."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from timm.models import SwinTransformer, VisionTransformer, VisionTransformerDistilled
from torch import Tensor, nn

from egcam_lightning import ExpectedGradCAM
from tests.support.scenes import in_place, patched

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().eval()


class Padded(nn.Module):
    """Images are padded to a square first, which their tokens do not show."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = VisionTransformer(img_size=160, patch_size=16, **SMALL)

    def forward(self, x: Tensor) -> Tensor:
        return self.vit(nn.functional.pad(x, (0, 0, 0, x.shape[3] - x.shape[2])))


@pytest.mark.parametrize(
    ("build", "size", "grid", "prefix", "layer"),
    [
        (lambda: VisionTransformer(img_size=(96, 160), patch_size=16, **SMALL), (96, 160), (6, 10), 1, "blocks.0"),
        (
            lambda: VisionTransformer(img_size=(160, 96), patch_size=16, reg_tokens=4, **SMALL),
            (160, 96),
            (10, 6),
            5,
            "blocks.0",
        ),
        (
            lambda: VisionTransformerDistilled(img_size=(96, 160), patch_size=16, **SMALL),
            (96, 160),
            (6, 10),
            2,
            "blocks.0",
        ),
        (
            lambda: VisionTransformer(img_size=(96, 160), patch_size=16, global_pool="avg", class_token=False, **SMALL),
            (96, 160),
            (6, 10),
            0,
            "blocks",
        ),
        (  # padded to whole patches
            lambda: VisionTransformer(
                img_size=(96, 160), patch_size=16, dynamic_img_size=True, dynamic_img_pad=True, **SMALL
            ),
            (90, 150),
            (6, 10),
            1,
            "blocks.0",
        ),
        (
            lambda: SwinTransformer(
                img_size=(64, 96), window_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 2), num_classes=5
            ),
            (64, 96),
            (8, 12),
            0,
            "norm",
        ),
    ],
    ids=["class token", "class and registers", "distilled", "mean of patches", "padded to patches", "channels last"],
)
def test_tokens_lie_where_their_patches_are(
    build: Callable[[], nn.Module], size: tuple[int, int], grid: tuple[int, int], prefix: int, layer: str
) -> None:
    noise, images, _ = patched(size)
    model = seeded(build)
    explainer = ExpectedGradCAM(model, "last", num_samples=8)
    explanation = explainer(images, noise, 1)
    assert explanation.layer == layer
    assert explanation.attribution.shape[1:] == grid == explainer.grid
    assert in_place(explanation.attribution)
    assert not in_place(explanation.attribution.flip(1))
    assert not in_place(explanation.attribution.flip(2))
    assert bool((explanation.off_grid != 0).all()) == (prefix > 0)


def test_tokens_that_fill_no_grid_need_a_transform_which_the_error_names() -> None:
    model = seeded(Padded)
    noise, images, _ = patched((96, 160))
    with pytest.raises(
        ValueError, match=r"'vit.blocks.1' has the shape \(.*101, 32\).*\(96, 160\).*`reshape_transform`"
    ):
        ExpectedGradCAM(model, "vit.blocks.1")(images, noise, 1)

    def reshape_transform(tokens: Tensor) -> Tensor:
        square = tokens[:, 1:].unflatten(1, (10, 10)).movedim(-1, 1)
        return square[:, :, :6]

    explanation = ExpectedGradCAM(model, "vit.blocks.1", num_samples=8, reshape_transform=reshape_transform)(
        images, noise, 1
    )
    assert explanation.attribution.shape == (8, 6, 10)
    assert in_place(explanation.attribution)
    assert bool((explanation.off_grid != 0).all())


def test_hugging_face_models_take_images_by_position_and_keyword_alike() -> None:
    import transformers

    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=64, num_labels=5
    )
    model = seeded(lambda: transformers.ViTForImageClassification(config))
    noise, images, _ = patched(64)
    by_position = ExpectedGradCAM(model, num_samples=4)(images, noise, 1)
    by_keyword = ExpectedGradCAM(model, num_samples=4, forward_fn=lambda m, x: m(pixel_values=x))(images, noise, 1)
    torch.testing.assert_close(by_position.draws, by_keyword.draws)
