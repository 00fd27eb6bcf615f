"""Images to train on and to explain."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

HEIGHT, WIDTH = 24, 32  # of the images that are explained
SIDE = 16  # of those that are trained on
QUADRANTS = 4  # their classes


def images(count: int, channels: int = 3, seed: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Tensor:
    """Noise between 0 and 1, ``(count, channels, *size)``."""
    return torch.rand(count, channels, *size, generator=torch.Generator().manual_seed(seed))


def squares(count: int, seed: int = 0, size: int = SIDE) -> TensorDataset:
    """Noise with a bright square in the quadrant of its class: ``(count, 3, size, size)`` and ``(count,)``."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, QUADRANTS, (count,), generator=generator)
    pictures = torch.randn(count, 3, size, size, generator=generator) * 0.3
    half, quarter = size // 2, size // 4
    for picture, label in zip(pictures, labels.tolist(), strict=True):
        row, column = label // 2 * half, label % 2 * half
        picture[:, row : row + quarter, column : column + quarter] += 2.0
    return TensorDataset(pictures, labels)
