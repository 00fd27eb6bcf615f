"""What every metric does to maps and images: check them, take them to the image's size, blur."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import interpolate

# Elements of images or maps that are worked on together where each has several copies: those of five colour images of
# 512 x 512.
_AT_ONCE = 2**22

_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}
Rest = ParamSpec("Rest")
Result = TypeVar("Result")


def full_precision(function: Callable[Rest, Result]) -> Callable[Rest, Result]:
    """Run a function of tensors without autocast: inside a validation step it would round products to 8 bits."""

    @functools.wraps(function)
    def run(*args: Rest.args, **kwargs: Rest.kwargs) -> Result:
        devices = [value.device.type for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        with torch.autocast(devices[0] if devices else "cpu", enabled=False):
            return function(*args, **kwargs)

    return run


def check_maps(maps: Tensor, name: str = "attribution") -> Tensor:
    """Give maps ``(B, h, w)`` or ``(B, d, h, w)`` in float32 (float64 stays as it is), or say what is wrong."""
    if not isinstance(maps, Tensor) or not maps.is_floating_point():
        seen = maps.dtype if isinstance(maps, Tensor) else type(maps).__name__
        raise TypeError(f"{name} must be a tensor of floats, got {seen}; write {name}.float().")
    if maps.ndim not in (3, 4) or 0 in maps.shape[1:]:
        raise ValueError(
            f"{name} must hold one map per image, shape (B, h, w) or (B, d, h, w) for volumes, got "
            f"{tuple(maps.shape)}; sum over channels, or write {name}[None] for a single map."
        )
    return maps if maps.dtype == torch.float64 else maps.float()


def check_pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Give two batches of maps of one shape in floats, or say what is wrong."""
    first, second = check_maps(first), check_maps(second, "reference")
    if first.shape != second.shape:
        raise ValueError(
            f"the two maps of an image must have the same shape, got {tuple(first.shape)} and {tuple(second.shape)}; "
            "explain both at the same layer and image size."
        )
    return first, second


def check_target(target: Tensor, num_images: int) -> Tensor:
    """Give targets ``(B,)`` in int64, or say what is wrong."""
    if not isinstance(target, Tensor) or target.is_floating_point() or target.is_complex():
        seen = target.dtype if isinstance(target, Tensor) else type(target).__name__
        raise TypeError(f"target must be a tensor of class indices (int64), got {seen}; write target.long().")
    if target.shape != (num_images,):
        raise ValueError(f"target must have shape ({num_images},), one class per image, got {tuple(target.shape)}.")
    return target.long()


def check_images(images: Tensor, attribution: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Check images ``(B, C, H, W)`` against their maps ``(B, h, w)`` and targets; give maps and targets back."""
    attribution = check_maps(attribution)
    if not isinstance(images, Tensor) or not images.is_floating_point():
        seen = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a tensor of floats, the model's input, got {seen}.")
    size, grid = images.shape[2:], attribution.shape[1:]
    if len(images) != len(attribution) or len(size) != len(grid) or any(s < g for s, g in zip(size, grid, strict=True)):
        raise ValueError(
            f"images must have shape (B, C, H, W) and their maps (B, h, w) with h <= H and w <= W, "
            f"got {tuple(images.shape)} and {tuple(attribution.shape)}."
        )
    return attribution, check_target(target, len(images)).to(images.device)


def check_masks(mask: Tensor, attribution: Tensor) -> tuple[Tensor, Tensor]:
    """Check masks ``(B, H, W)`` against maps ``(B, h, w)``; give boolean masks and maps back."""
    attribution = check_maps(attribution)
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a tensor, got {type(mask).__name__}.")
    size, grid = mask.shape[1:], attribution.shape[1:]
    if len(mask) != len(attribution) or len(size) != len(grid) or any(s < g for s, g in zip(size, grid, strict=True)):
        raise ValueError(
            f"mask must have shape (B, H, W), at least as large as the maps (B, h, w), "
            f"got {tuple(mask.shape)} and {tuple(attribution.shape)}; write mask[:, 0] for masks with a channel."
        )
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("mask must be boolean, or hold zeros and ones only; write mask == label for a label map.")
    return mask.bool(), attribution


def where_finite(values: Tensor, *maps: Tensor) -> Tensor:
    """NaN for every image ``(B,)`` of which a map ``(B, ...)`` holds a NaN or an infinity."""
    for item in maps:
        values = torch.where(item.isfinite().flatten(1).all(1), values, torch.nan)
    return values


def positive_part(attribution: Tensor) -> Tensor:
    """The positive part of each map ``(B, h, w)``, with maximum 1, or all 0 where nothing is positive."""
    positive = attribution.clamp(min=0)
    # Divided by the peak first: sums and squares of very large or very small maps would overflow or vanish.
    peak = positive.flatten(1).amax(1).view(-1, *[1] * (positive.ndim - 1))
    return torch.where(peak > 0, positive / peak.clamp(min=torch.finfo(peak.dtype).tiny), 0.0)


def resize(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Interpolate maps ``(B, h, w)`` linearly to ``(B, *size)``: the values people see."""
    return interpolate(maps[:, None], size=size, mode=_MODES[len(size)], align_corners=False)[:, 0]


def few_at_once(maps: Tensor) -> int:
    """How many images of this size, ``(B, *size)``, are worked on together where that takes several copies of each."""
    return max(1, _AT_ONCE // max(1, maps[:1].numel()))


@full_precision
def spread(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Hand out what each cell of ``(B, h, w)`` holds to the pixels of ``(B, *size)``.

    The same bilinear weights as :func:`resize`, divided by what a cell hands out in all: every map keeps its total
    exactly, whatever the two sizes are, so that sums over pixels are in units of the score.
    """
    for axis, length in enumerate(size, start=1):
        cells = torch.eye(maps.shape[axis], dtype=maps.dtype, device=maps.device)[None]
        weights = interpolate(cells, size=length, mode="linear", align_corners=False)[0]
        maps = (maps.movedim(axis, -1) @ (weights / weights.sum(1, keepdim=True))).movedim(-1, axis)
    return maps


def lengths(size: tuple[int, ...]) -> tuple[int, ...]:
    """What a share of an image is a share of along each axis of ``size``: its shorter side.

    Along the depth of a volume it is the depth: slices are not as far apart as pixels, and a clip of few frames would
    be blurred by hardly a pixel.
    """
    return (*size[:-2], *[min(size[-2:])] * 2)


@full_precision
def blurred(images: Tensor, sigma: float | None = None) -> Tensor:
    """Blur images so far that what a block of them shows is gone, and their mean colour stays.

    Args:
        images: ``(B, C, H, W)`` or ``(B, C, D, H, W)``.
        sigma: standard deviation of the Gaussian in pixels; ``None`` for a tenth of the shorter side, and of the depth
            along it.

    Returns:
        ``(B, C, H, W)`` float32, blurred along every spatial dimension, cut at 3 sigma, reflected at the borders.

    Example:
        >>> import torch
        >>> image = torch.eye(20)[None, None]
        >>> blurred(image).shape, bool(blurred(image).amax() < 0.5)
        (torch.Size([1, 1, 20, 20]), True)

    """
    from torchvision.transforms.functional import gaussian_blur

    few = few_at_once(images)
    if len(images) > few:
        result = torch.empty(images.shape, device=images.device)
        for part, into in zip(torch.split(images, few), torch.split(result, few), strict=True):
            into.copy_(blurred(part, sigma))
        return result
    out = images.float()
    # One dimension after another: the same result as one large kernel for a fraction of the cost.
    for axis, length in enumerate(lengths(tuple(images.shape[2:])), start=2):
        width = length / 10 if sigma is None else sigma
        radius = min(math.ceil(3 * width), out.shape[axis] - 1)
        lines = out.movedim(axis, -1)
        flat = lines.flatten(2, -2)
        out = gaussian_blur(flat, [2 * radius + 1, 1], [width, width]).view_as(lines).movedim(-1, axis)
    return out


def check_replacement(images: Tensor, replacement: Tensor | None) -> Tensor:
    """What pixels are replaced by, ``(B, C, H, W)`` float32: a blurred copy unless something else is given."""
    if replacement is None:
        return blurred(images)
    if replacement.shape != images.shape:
        raise ValueError(
            f"replacement must have the shape of images, {tuple(images.shape)}, got {tuple(replacement.shape)}."
        )
    return replacement.float()
