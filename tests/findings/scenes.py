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
        looks_for: ``(3, h, w)``, the tag; ``None`` for the checkered one of 4x4.
        bias: of what is found; the tag itself gives 1.

    """

    def __init__(self, on_tag: float, looks_for: Tensor | None = None, bias: float = -0.5) -> None:
        super().__init__()
        looks_for = tag() if looks_for is None else looks_for
        self.features = nn.Conv2d(3, CLASSES + 1, tuple(looks_for.shape[1:]))
        self.norm = nn.BatchNorm2d(CLASSES)
        self.drop = nn.Dropout(0.5)
        self.on_tag = on_tag
        with torch.no_grad():
            self.features.weight.zero_()
            self.features.bias.zero_()
            for k in range(3):
                self.features.weight[k, k] = 60.0 / looks_for[0].numel()
            self.features.bias[3] = 15.0
            self.features.weight[CLASSES] = looks_for / looks_for.numel()
            self.features.bias[CLASSES] = bias  # -0.5: half of every path to the tag tells

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
