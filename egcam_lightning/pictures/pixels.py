"""What people see of the model's inputs: pixels in their own colours, of images and of all slices of volumes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

# What all volumes together may take for display: some seconds to compress, once a run.
MAX_VOLUME_BYTES = 2**25


def to_display(
    images: Tensor, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> tuple[Tensor, bool]:
    """Turn model inputs into what people see.

    One channel is shown as grey, two by their mean, and of more than three the first three. Values that are not finite
    are shown as the darkest; an image of one value is shown as grey. Volumes keep all their slices; where together they
    would take more than :data:`MAX_VOLUME_BYTES`, each slice is shrunk in proportion.

    Args:
        images: ``(N, C, H, W)`` or ``(N, C, D, H, W)``, uint8 (shown as it is) or floating point.
        mean: what was subtracted, one number a channel (or one for all).
        std: what it was divided by, one number a channel (or one for all).

    Returns:
        The images, ``(N, H, W, 3)`` uint8 on the CPU (volumes ``(N, D, H, W, 3)``), and whether their colours are the
        data set's own; without ``mean`` and ``std`` every image is stretched to its own range, a volume as a whole.

    Raises:
        ValueError: where the shape is another, or ``mean`` and ``std`` do not fit the channels.

    Example:
        >>> import torch
        >>> shown, restored = to_display(torch.tensor([0.0, 1.0]).view(1, 1, 1, 2), mean=[0.0], std=[0.5])
        >>> shown[0, 0].tolist(), restored
        ([[0, 0, 0], [128, 128, 128]], True)

    """
    if images.ndim not in (4, 5) or 0 in images.shape[1:]:
        raise ValueError(f"images must have shape (N, C, H, W) or (N, C, D, H, W), got {tuple(images.shape)}")
    if (mean is None) != (std is None):
        raise ValueError("mean and std belong together: give both or neither")
    pixels = images.detach().cpu()
    restored = mean is not None or pixels.dtype == torch.uint8
    if pixels.ndim == 5:
        pixels = _bounded(pixels)
    ones = [1] * (pixels.ndim - 2)
    if images.dtype == torch.uint8:
        pixels = pixels.float() / 255
    elif mean is not None and std is not None:
        channels = images.shape[1]
        if {len(mean), len(std)} - {1, channels}:
            raise ValueError(f"mean has {len(mean)} numbers and std {len(std)}, the images have {channels} channels")
        pixels = pixels.float() * torch.tensor(std).view(1, -1, *ones) + torch.tensor(mean).view(1, -1, *ones)
    pixels = pixels.float()
    pixels = pixels[:, :3] if pixels.shape[1] > 2 else pixels.mean(1, keepdim=True)
    if not restored:
        finite = pixels.isfinite()
        low = torch.where(finite, pixels, torch.inf).flatten(1).amin(1).view(-1, 1, *ones)
        high = torch.where(finite, pixels, -torch.inf).flatten(1).amax(1).view(-1, 1, *ones)
        pixels = torch.where(high > low, (pixels - low) / (high - low), torch.where(finite, 0.5, 0.0))
    shown = (pixels.nan_to_num(0.0, 0.0, 0.0).clamp(0, 1) * 255).round().to(torch.uint8)
    return shown.expand(-1, 3, *shown.shape[2:]).movedim(1, -1).contiguous(), restored


def _bounded(volumes: Tensor) -> Tensor:
    """``(N, C, D, H, W)`` with slices so small that :data:`MAX_VOLUME_BYTES` holds all as three bytes a pixel."""
    count, _, depth, height, width = volumes.shape
    shrink = math.sqrt(MAX_VOLUME_BYTES / (3 * max(count, 1) * depth * height * width))
    if shrink >= 1:
        return volumes
    size = (depth, max(1, int(height * shrink)), max(1, int(width * shrink)))
    # One by one: the volumes may well be the largest thing in memory.
    return torch.cat([interpolate(volume[None].float(), size=size, mode="area") for volume in volumes])
