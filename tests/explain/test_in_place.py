"""Is the map in place? Only a patch differs between image and baseline, so the attribution lies where the patch is."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from egcam_lightning.explain import Draws, ExpectedGradCAM, Perturbation
from tests.support.networks import Block, seeded
from tests.support.scenes import in_place

SIDE = 224
CENTRES = [(56, 56), (56, 168), (168, 56), (168, 168)]  # the middle of each quadrant, row by row


def build() -> nn.Module:
    """A residual network with random weights, 14 x 14 at its last stage."""
    widths = [8, 12, 16, 24]
    stages = [Block(before, after, 2) for before, after in pairwise(widths)]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5))
    return nn.Sequential(nn.Conv2d(3, 8, 5, 2, 2), nn.ReLU(inplace=True), *stages, *head)


@pytest.fixture(scope="module")
def maps() -> Tensor:
    """``(B, h, w)``: the attribution of images with one patch each, in every quadrant in turn."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(8, 3, SIDE, SIDE, generator=generator)
    patched = noise.clone()
    for image, (row, column) in zip(patched, CENTRES * 2, strict=True):
        image[:, row - 20 : row + 20, column - 20 : column + 20] = torch.rand(3, 1, 1, generator=generator)
    # The baseline of every image is its own noise.
    draws = Draws(torch.arange(8).expand(4, 8), ((torch.arange(4) + 0.5) / 4)[:, None].expand(4, 8))
    explainer = ExpectedGradCAM(seeded(build), perturbation=Perturbation.expected())
    explanation = explainer(patched, noise, 1, draws=draws)
    assert explanation.attribution.shape == (8, 14, 14)
    return explanation.attribution


def test_attribution_lies_in_the_quadrant_of_the_patch(maps: Tensor) -> None:
    assert in_place(maps)


@pytest.mark.parametrize(
    "turn",
    [lambda m: m.flip(1), lambda m: m.flip(2), lambda m: m.transpose(1, 2), lambda m: m.roll(7, 2)],
    ids=["upside down", "mirrored", "transposed", "shifted by half"],
)
def test_a_map_that_is_turned_would_be_found_out(maps: Tensor, turn: Callable[[Tensor], Tensor]) -> None:
    assert not in_place(turn(maps))
