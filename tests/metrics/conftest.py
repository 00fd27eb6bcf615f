"""A small model, images and maps that every test of the metrics can share."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn


@pytest.fixture
def world() -> SimpleNamespace:
    """Five images of 1 x 16 x 16, three classes, a small convolutional network and a random signed map for each."""
    generator = torch.Generator().manual_seed(7)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.GELU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, 3)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    model.requires_grad_(False)
    return SimpleNamespace(
        model=model,
        images=torch.rand(5, 1, 16, 16, generator=generator),
        maps=torch.randn(5, 4, 4, generator=generator),
        fine_maps=torch.randn(5, 16, 16, generator=generator),
        other_maps=torch.randn(5, 4, 4, generator=generator),
        masks=torch.rand(5, 16, 16, generator=generator) > 0.6,
        target=torch.tensor([0, 1, 2, 1, 0]),
    )
