"""Images of which only one place matters, and whether a map says so."""

from __future__ import annotations

import torch
from torch import Tensor


def patched(side: int | tuple[int, int], count: int = 8, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """One noise image, and the same with a patch of one colour in the middle of a quadrant.

    Returns:
        The baseline ``(1, 3, H, W)``, the images ``(count, 3, H, W)``, and the quadrant of each patch ``(count,)``, row
        by row.

    """
    generator = torch.Generator().manual_seed(seed)
    size = (side, side) if isinstance(side, int) else side
    noise = torch.randn(1, 3, *size, generator=generator)
    images = noise.repeat(count, 1, 1, 1)
    quadrants = torch.arange(count) % 4
    for image, quadrant in zip(images, quadrants.tolist(), strict=True):
        steps = zip(size, divmod(quadrant, 2), strict=True)
        rows, columns = (slice(s // 8 + s // 2 * step, s // 8 + s // 2 * step + s // 4) for s, step in steps)
        image[:, rows, columns] = 2 * torch.randn(3, 1, 1, generator=generator)
    return noise, images, quadrants


def quadrant_shares(maps: Tensor) -> Tensor:
    """``(B, 4)``, from ``(B, h, w)``: the share of the absolute attribution in each quadrant, row by row.

    A middle row or column of an odd grid belongs to both sides, half each.
    """
    fine = maps.abs().repeat_interleave(2, 1).repeat_interleave(2, 2)
    sums = fine.unflatten(2, (2, -1)).unflatten(1, (2, -1)).sum((2, 4)).flatten(1)
    return sums / sums.sum(1, keepdim=True)


def placement(maps: Tensor, quadrants: Tensor | None = None) -> tuple[float, float]:
    """The mean share in the right quadrant, and for how many images it is the largest."""
    quadrants = torch.arange(len(maps)) % 4 if quadrants is None else quadrants
    shares = quadrant_shares(maps)
    own = shares.gather(1, quadrants[:, None]).mean()
    return float(own), float((shares.argmax(1) == quadrants).float().mean())


def in_place(maps: Tensor, quadrants: Tensor | None = None) -> bool:
    """At least 0.3 of the attribution in the right quadrant (0.25 is uniform), the first one for three of four."""
    share, first = placement(maps, quadrants)
    return share >= 0.3 and first >= 0.75
