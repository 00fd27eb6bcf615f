from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from tests.support.networks import VGG, Case, ResNet, Trained, seeded
from tests.support.pictures import images

CASES = [
    (architecture, layer, channels)
    for architecture, layers in ((ResNet, ("layer1", "layer2")), (VGG, ("features.4", "features.7")))
    for layer in layers
    for channels in (1, 3)
]


@pytest.fixture(params=CASES, ids=lambda p: f"{p[0].__name__}-{p[1]}-{p[2]}ch")
def case(request: pytest.FixtureRequest) -> Case:
    architecture, layer, channels = request.param
    model = seeded(lambda: architecture(channels))
    return Case(model, layer, images(3, channels), images(4, channels, seed=1), torch.tensor([1, 4, 2]))


@pytest.fixture
def vgg_case() -> Case:
    """The case in which the head is least linear."""
    return Case(seeded(VGG), "features.4", images(3), images(4, seed=1), torch.tensor([1, 4, 2]))


@pytest.fixture(scope="session")
def digits() -> Trained:
    """Handwritten digits, at 16 x 16, and a network that reads them."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pictures = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    pictures = nn.functional.interpolate(pictures, size=(16, 16), mode="bilinear")
    labels = torch.tensor(data.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))  # the last ones have other writers
    pictures, labels = pictures[order], labels[order]

    def build() -> nn.Module:
        return nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()),
            *(nn.Conv2d(16, 24, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
            *(nn.Linear(96, 32), nn.ReLU(), nn.Linear(32, 10)),
        )

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build()
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(8):
            for rows in torch.randperm(1500).split(50):
                loss = nn.functional.cross_entropy(model(pictures[rows]), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    model.eval()
    with torch.no_grad():
        accuracy = (model(pictures[1500:]).argmax(1) == labels[1500:]).float().mean()
    assert accuracy > 0.9, f"the network has learned too little for what follows: {accuracy}"
    return Trained(model, pictures[1500:1532], pictures[:32], labels[1500:1532])


@pytest.fixture
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
