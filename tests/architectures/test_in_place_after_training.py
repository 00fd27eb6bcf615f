"""After training, too, relevance lies on what decides the class: a coloured patch in one quadrant of noise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from egcam_lightning import ExpectedGradCAM
from tests.support.scenes import in_place, placement


def scenes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Noise with a patch in one quadrant, ``(count, 3, 48, 48)``; the patch's colour; its quadrant."""
    images = 0.5 * torch.randn(count, 3, 48, 48, generator=generator)
    colours = torch.randint(0, 3, (count,), generator=generator)
    quadrants = torch.randint(0, 4, (count,), generator=generator)
    for image, colour, quadrant in zip(images, colours.tolist(), quadrants.tolist(), strict=True):
        row, column = (6 + 24 * step for step in divmod(quadrant, 2))
        image[colour, row : row + 12, column : column + 12] += 1.5
    return images, colours, quadrants


def convolutional() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        *(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(inplace=True)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)),
    )


def transformer() -> nn.Module:
    return VisionTransformer(img_size=48, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=3)


@pytest.mark.parametrize(("build", "layer"), [(convolutional, "5"), (transformer, "blocks.0")])
def test_relevance_lies_on_the_patch_that_decides_the_class(build: Callable[[], nn.Module], layer: str) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build()
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        for _ in range(60):
            images, colours, _ = scenes(64, generator)
            loss = nn.functional.cross_entropy(model(images), colours)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    images, colours, quadrants = scenes(64, generator)
    with torch.no_grad():
        accuracy = (model(images).argmax(1) == colours).float().mean()
    assert accuracy > 0.95, f"the network has learned too little for what follows: {accuracy}"
    baselines = scenes(32, generator)[0]
    for target_layer in ("last", "auto"):
        explanation = ExpectedGradCAM(model, target_layer, num_samples=32)(images, baselines, colours)
        assert layer in explanation.layer.split("+")
        positive = explanation.attribution.clamp(min=0)
        assert in_place(positive, quadrants), placement(positive, quadrants)
    assert not in_place(positive.flip(1), quadrants)
    assert not in_place(positive.transpose(1, 2), quadrants)
