"""Windows of images: where a map points, where chance points, and what an image is with another's window in it."""

from __future__ import annotations

from collections.abc import Sequence
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

    def __getitem__(self, rows: Tensor | slice) -> Windows:
        return Windows(*(part[rows] for part in self.parts))

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """Image, top, left, height and width."""
        return self.image, self.top, self.left, self.height, self.width

    def picked_from(self, others: Sequence[Windows], which: Tensor) -> Windows:
        """Of these (0) and others (1, 2, ...) that of each row which is asked for."""
        parts = zip(*(one.parts for one in (self, *others)), strict=True)
        return Windows(*(torch.stack(part).gather(0, which[None])[0] for part in parts))

    def masks(self, size: tuple[int, int]) -> Tensor:
        """``(n, H, W)`` bool, true inside."""
        row = torch.arange(size[0], device=self.top.device)
        column = torch.arange(size[1], device=self.top.device)
        rows = (row >= self.top[:, None]) & (row < (self.top + self.height)[:, None])
        columns = (column >= self.left[:, None]) & (column < (self.left + self.width)[:, None])
        return rows[:, :, None] & columns[:, None, :]


def strongest(maps: Tensor, image: Tensor, shape: tuple[float, float], count: int = 1) -> list[Windows]:
    """The windows of every image that hold most of its relevance, at places that differ.

    Args:
        maps: ``(n, H, W)``, signed.
        image: ``(n,)``, which image each is of.
        shape: height and width of the windows, as shares of the image's shorter side.
        count: how many windows an image; the middle of each is at least half a side away from those before.

    Returns:
        ``count`` times one window an image, that which holds most first.

    Example:
        >>> maps = torch.zeros(1, 8, 8)
        >>> maps[0, 6, 5] = 1
        >>> [window] = strongest(maps, torch.tensor([0]), (0.25, 0.25))
        >>> window.top.item(), window.left.item(), window.height.item()
        (5, 4, 2)

    """
    size = (maps.shape[1], maps.shape[2])
    height, width = (min(max(2, round(share * min(size))), length) for share, length in zip(shape, size, strict=True))
    held = means_within(maps, (height, width))
    row = torch.arange(held.shape[1], device=held.device)[None, :, None]
    column = torch.arange(held.shape[2], device=held.device)[None, None, :]
    sides = torch.full_like(image, height), torch.full_like(image, width)
    found = []
    for _ in range(count):
        best = held.flatten(1).argmax(1)
        top, left = best // held.shape[2], best % held.shape[2]
        found.append(Windows(image, top, left, *sides))
        above, beside = (row - top[:, None, None]).abs(), (column - left[:, None, None]).abs()
        held = held.masked_fill((2 * above < height) & (2 * beside < width), -torch.inf)
    return found


def means_within(values: Tensor, size: tuple[int, int]) -> Tensor:
    """``(n, H - h + 1, W - w + 1)``: the means of values ``(n, H, W)`` within all windows of a size.

    Example:
        >>> means_within(torch.eye(3)[None], (2, 3)).tolist()
        [[[0.333...], [0.333...]]]

    """
    # One side after the other: with both at once each mean adds up h * w values instead of h + w.
    return avg_pool2d(avg_pool2d(values[:, None], (size[0], 1), 1), (1, size[1]), 1)[:, 0]


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
