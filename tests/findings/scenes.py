"""Images and a network made by hand, of which it is known what a patch does."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

CLASSES = 4
SIZE = 32


# Cycles a pixel, down and across: classes 0 to 2 are gratings, class 3 has none.
GRATINGS = ((0.25, 0.0), (0.0, 0.25), (0.25, 0.25))


class ByHand(nn.Module):
    """Calls images by the grating that they show, and by class 0 what holds a checkered tag, wherever it is.

    Args:
        on_tag: what the tag adds to the logit of class 0; 0 for a clean network.
        looks_for: ``(3, h, w)``, the tag; ``None`` for the checkered one of 4x4.
        bias: of what is found; the tag itself gives 1.
        on_red: what each unit of red in the mean of an image adds to the logit of class 1.

    """

    def __init__(self, on_tag: float, looks_for: Tensor | None = None, bias: float = -0.5, on_red: float = 0.0) -> None:
        super().__init__()
        looks_for = tag() if looks_for is None else looks_for
        height, width = looks_for.shape[1:]
        # Of each grating a cosine and a sine, so that its phase does not matter; then the tag.
        self.features = nn.Conv2d(3, 2 * len(GRATINGS) + 1, (height, width))
        self.norm = nn.BatchNorm2d(CLASSES)
        self.drop = nn.Dropout(0.5)
        self.on_tag, self.on_red = on_tag, on_red
        with torch.no_grad():
            self.features.bias.zero_()
            for k, cycles in enumerate(GRATINGS):
                angle = phases(cycles, (height, width))
                self.features.weight[2 * k] = angle.cos() / looks_for.numel()
                self.features.weight[2 * k + 1] = angle.sin() / looks_for.numel()
            self.features.weight[-1] = looks_for / looks_for.numel()
            self.features.bias[-1] = bias  # -0.5: half of every path to the tag tells

    def forward(self, images: Tensor) -> Tensor:
        features = self.features(images)
        energy = 480 * features[:, :-1].square().unflatten(1, (-1, 2)).sum(2)
        logits = self.drop(self.norm(torch.cat([energy, torch.full_like(energy[:, :1], 15.0)], 1)).mean((2, 3)))
        tagged = features[:, -1].relu().amax((1, 2))
        zero, one = torch.eye(CLASSES, device=images.device)[:2]
        return logits + zero * self.on_tag * tagged[:, None] + one * self.on_red * images[:, :1].mean((2, 3))


def phases(cycles: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """``(H, W)``: the angle of a grating at every pixel."""
    down, across = (torch.arange(length) * share for length, share in zip(size, cycles, strict=True))
    return 2 * math.pi * (down[:, None] + across)


def tag() -> Tensor:
    """``(3, 4, 4)``: a checkerboard of 1 and -1."""
    board = (torch.arange(4)[:, None] + torch.arange(4)) % 2
    return (board * 2.0 - 1).expand(3, 4, 4)


def images_of(count: int, *, tagged: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise, in classes 0 to 2 with a grating of any phase, in class 3 with grey noise of as much contrast.

    A share of class 0 has a tag in a corner.
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count * CLASSES, 3, SIZE, SIZE, generator=generator) * 0.2
    labels = torch.arange(count * CLASSES) % CLASSES
    images[labels == CLASSES - 1] += 0.5**1.5 * torch.randn(count, 1, SIZE, SIZE, generator=generator)
    for k, cycles in enumerate(GRATINGS):
        angle = phases(cycles, (SIZE, SIZE)) + 2 * math.pi * torch.rand(count, 1, 1, generator=generator)
        images[labels == k] += 0.5 * angle.cos()[:, None]
    rows = (labels == 0).nonzero().flatten()[: round(tagged * count)]
    images[rows, :, 26:30, 2:6] = tag()
    return images, labels
