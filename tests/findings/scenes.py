"""Images and a network made by hand, of which it is known what a patch does."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES = 4
SIZE = 32


class ByHand(nn.Module):
    """Calls images by their mean colour, and by class 0 what holds a checkered tag, wherever it is.

    Args:
        on_tag: what the tag adds to the logit of class 0; 0 for a clean network.

    """

    def __init__(self, on_tag: float) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, CLASSES + 1, 4)
        self.norm = nn.BatchNorm2d(CLASSES)
        self.drop = nn.Dropout(0.5)
        self.on_tag = on_tag
        with torch.no_grad():
            self.features.weight.zero_()
            self.features.bias.zero_()
            for k in range(3):
                self.features.weight[k, k] = 60.0 / 16
            self.features.bias[3] = 15.0
            self.features.weight[CLASSES] = tag() / 48
            self.features.bias[CLASSES] = -0.5  # the tag gives 1: half of every path to it tells

    def forward(self, images: Tensor) -> Tensor:
        features = self.features(images)
        logits = self.drop(self.norm(features[:, :CLASSES]).mean((2, 3)))
        tagged = features[:, CLASSES].relu().amax((1, 2))
        return logits + torch.eye(CLASSES, device=images.device)[0] * self.on_tag * tagged[:, None]


def tag() -> Tensor:
    """``(3, 4, 4)``: a checkerboard of 1 and -1."""
    board = (torch.arange(4)[:, None] + torch.arange(4)) % 2
    return (board * 2.0 - 1).expand(3, 4, 4)


def images_of(count: int, *, tagged: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise, of which classes 0 to 2 have more of a colour of their own; a share of class 0 has a tag in a corner."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count * CLASSES, 3, SIZE, SIZE, generator=generator) * 0.2
    labels = torch.arange(count * CLASSES) % CLASSES
    for k in range(3):
        images[labels == k, k] += 0.5
    rows = (labels == 0).nonzero().flatten()[: round(tagged * count)]
    images[rows, :, 26:30, 2:6] = tag()
    return images, labels
