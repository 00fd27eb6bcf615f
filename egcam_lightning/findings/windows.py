"""Windows of images: where a map points, where chance points, and what an image is with another's window in it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d


@dataclass(frozen=True, eq=False)
class Windows:
    """Rectangles of images, one a row.

    Attributes:
        image: ``(n,)`` int64, the image that each is of.
        top: ``(n,)`` int64, its first row of pixels.
        left: ``(n,)`` int64, its first column.
        height: ``(n,)`` int64.
        width: ``(n,)`` int64.

    """

    image: Tensor
    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, rows: Tensor) -> Windows:
        return Windows(*(part[rows] for part in self._parts()))

    def _parts(self) -> tuple[Tensor, ...]:
        return self.image, self.top, self.left, self.height, self.width

    @classmethod
    def joined(cls, several: list[Windows]) -> Windows:
        """One below the other."""
        return cls(*(torch.cat(parts) for parts in zip(*(one._parts() for one in several), strict=True)))

    def masks(self, size: tuple[int, int]) -> Tensor:
        """``(n, H, W)`` bool, true inside."""
        row = torch.arange(size[0], device=self.top.device)
        column = torch.arange(size[1], device=self.top.device)
        rows = (row >= self.top[:, None]) & (row < (self.top + self.height)[:, None])
        columns = (column >= self.left[:, None]) & (column < (self.left + self.width)[:, None])
        return rows[:, :, None] & columns[:, None, :]


def strongest(heatmaps: Tensor, image: Tensor, shape: tuple[float, float], beside: Windows | None = None) -> Windows:
    """The window of every image that holds most of its relevance.

    Args:
        heatmaps: ``(n, H, W)``, not negative.
        image: ``(n,)``, which image each is of.
        shape: height and width of the window, as shares of the image's shorter side.
        beside: windows that it must not overlap by more than half a side: gives the next best place.

    Returns:
        One window an image; the first of several equal ones.

    Example:
        >>> heat = torch.zeros(1, 8, 8)
        >>> heat[0, 6, 5] = 1
        >>> window = strongest(heat, torch.tensor([0]), (0.25, 0.25))
        >>> window.top.item(), window.left.item(), window.height.item()
        (5, 4, 2)

    """
    size = (heatmaps.shape[1], heatmaps.shape[2])
    height, width = (min(max(2, round(share * min(size))), length) for share, length in zip(shape, size, strict=True))
    held = avg_pool2d(heatmaps[:, None], (height, width), 1)[:, 0]
    if beside is not None:
        row = torch.arange(held.shape[1], device=held.device)[None, :, None]
        column = torch.arange(held.shape[2], device=held.device)[None, None, :]
        middle = (2 * row + height - 2 * beside.top[:, None, None] - beside.height[:, None, None]).abs() < height
        middle = middle & ((2 * column + width - 2 * beside.left[:, None, None] - beside.width[:, None, None]).abs() < width)
        held = held.masked_fill(middle, -1.0)
    best = held.flatten(1).argmax(1)
    across = held.shape[2]
    sides = (torch.full_like(image, height), torch.full_like(image, width))
    return Windows(image, best // across, best % across, *sides)


def random_windows(like: Windows, size: tuple[int, int], generator: torch.Generator) -> Windows:
    """Windows of the same images and sizes at places drawn at random.

    Args:
        like: windows.
        size: ``(H, W)`` of the images.
        generator: draws the places, on the CPU.

    """
    chance = torch.rand(2, len(like), generator=generator).to(like.image.device)
    top = (chance[0] * (size[0] - like.height + 1)).long().clamp(max=size[0] - 1)
    left = (chance[1] * (size[1] - like.width + 1)).long().clamp(max=size[1] - 1)
    return Windows(like.image, top, left, like.height, like.width)


def pasted(source: Tensor, onto: Tensor, windows: Windows) -> Tensor:
    """Images with the windows of others in them, at the same place.

    Args:
        source: ``(n, C, H, W)``, the images that the windows are of, one a window.
        onto: ``(n, C, H, W)``, what they are pasted onto.
        windows: n of them.

    Returns:
        ``(n, C, H, W)``.

    """
    inside = windows.masks((source.shape[2], source.shape[3]))
    return torch.where(inside[:, None], source, onto)

