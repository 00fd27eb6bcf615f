"""Where a layer's positions lie on the image: channels first, channels last, or tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

# Class, distillation and register tokens stand before the patches; no published model has more than this.
_MAX_PREFIX = 16


@dataclass(frozen=True)
class Layout:
    """How an activation of a layer is brought to channels and a grid.

    Attributes:
        grid: the layer's grid, ``(h, w)`` or ``(d, h, w)``.
        channels_last: whether the channels are the last dimension.
        prefix: number of leading tokens without a place on the image.
        transform: the user's own, from an activation to ``(N, K, *grid)``; it replaces the rest.

    """

    grid: tuple[int, ...]
    channels_last: bool = False
    prefix: int = 0
    transform: Callable[[Tensor], Tensor] | None = None

    @property
    def covers_all(self) -> bool:
        """Whether every position of the layer has a place on the image."""
        return self.prefix == 0 and self.transform is None

    def to_grid(self, activation: Tensor) -> Tensor:
        """``(N, K, *grid)``, from an activation in the layer's own layout."""
        if self.transform is not None:
            return self.transform(activation)
        if not self.channels_last:
            return activation
        placed = activation[:, self.prefix :] if self.prefix else activation
        return placed.reshape(len(activation), *self.grid, -1).movedim(-1, 1)


def infer_layout(shape: Sequence[int], size: Sequence[int]) -> Layout | None:
    """Infer where the positions of an activation lie on an image.

    Args:
        shape: the activation's shape without its batch dimension: ``(K, h, w)``, ``(h, w, K)``, ``(T, K)`` tokens, or
            with one more dimension for volumes.
        size: the image's spatial size, ``(H, W)`` or ``(D, H, W)``.

    Returns:
        The layout, or ``None`` where there is none: no positions, or tokens that fill no grid of the image's shape.

    Example:
        >>> infer_layout((512, 7, 7), (224, 224)).grid
        (7, 7)
        >>> infer_layout((7, 7, 768), (224, 224)).channels_last
        True
        >>> infer_layout((198, 192), (224, 224))
        Layout(grid=(14, 14), channels_last=True, prefix=2, transform=None)

    """
    dims = len(size)
    if len(shape) == dims + 1:
        first, last = tuple(shape[1:]), tuple(shape[:-1])
        if _misfit(last, size) < _misfit(first, size):
            return Layout(last, channels_last=True)
        return Layout(first)
    if len(shape) == 2:
        return _token_layout(shape[0], size)
    return None


def _token_layout(tokens: int, size: Sequence[int]) -> Layout | None:
    # The patch size is the same along every axis, so a grid follows from the image's shape and one whole number.
    for exact in (True, False):
        for prefix in range(min(_MAX_PREFIX, tokens)):
            for patch in range(1, min(size) + 1):
                if exact and any(side % patch for side in size):
                    continue
                for grid in {tuple(side // patch for side in size), tuple(-(-side // patch) for side in size)}:
                    if math.prod(grid) == tokens - prefix > 1:
                        return Layout(grid, channels_last=True, prefix=prefix)
    return None


def _misfit(grid: Sequence[int], size: Sequence[int]) -> float:
    """How far a grid's shape is from the image's; 0 within the rounding of strides."""
    if any(g > 2 * s for g, s in zip(grid, size, strict=True)):
        return math.inf
    scale = math.prod(grid) / math.prod(size)
    expected = [s * scale ** (1 / len(size)) for s in size]
    return math.fsum(max(0.0, abs(g - e) - 1) / e for g, e in zip(grid, expected, strict=True))
