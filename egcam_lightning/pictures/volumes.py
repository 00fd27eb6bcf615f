"""Volumes as pictures: of each the one slice that the map speaks for most.

A map over three axes is kept and measured whole. Only what people look at is flat, and here alone it is made so:
pictures, masks and maps of images pass through as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate


@dataclass(frozen=True, eq=False)
class FlatMaps:
    """Maps as they are shown: ``N`` images on a layer grid of ``h`` x ``w``.

    Attributes:
        signed: ``(N, h, w)``, the signed maps; 0 where they are not finite.
        positive: ``(N, h, w)``, what speaks for the explained class; taken before a slice is interpolated between two
            planes of the layer, as in :func:`~egcam_lightning.explain.explanation.to_heatmap`, so that what speaks
            against it in one plane hides nothing of the other.
        slices: ``(N,)`` int64, the slice of each volume that is shown, from 0; ``None`` for images.

    """

    signed: Tensor
    positive: Tensor
    slices: Tensor | None


def flatten_maps(attribution: Tensor, depth: int | None) -> FlatMaps:
    """Take of each map what is shown of it.

    Args:
        attribution: signed maps of shape ``(N, h, w)``, or ``(N, d, h, w)`` for volumes.
        depth: the number of slices of the input, at least d; ``None`` for images.

    Returns:
        The maps of images as they are; of volumes those at the slice of :func:`strongest_slices`, linear between the
        layer's planes.

    Raises:
        ValueError: where maps over three axes are given for images, or the other way round.

    Example:
        >>> import torch
        >>> flat = flatten_maps(torch.tensor([[[[1.0]], [[-3.0]]]]), depth=4)
        >>> flat.slices, flat.signed, flat.positive
        (tensor([0]), tensor([[[1.]]]), tensor([[[1.]]]))

    """
    if attribution.ndim != (3 if depth is None else 4):
        shape = "(N, h, w) for images" if depth is None else f"(N, d, h, w) for volumes of {depth} slices"
        raise ValueError(f"expected maps of shape {shape}, got {tuple(attribution.shape)}")
    signed = attribution.detach().float().cpu().nan_to_num(0.0, 0.0, 0.0)
    positive = signed.clamp(min=0)
    if depth is None:
        return FlatMaps(signed, positive, None)
    slices = strongest_slices(attribution, depth)
    signed, positive = (take_slices(_along_depth(maps, depth), slices) for maps in (signed, positive))
    return FlatMaps(signed, positive, slices)


def strongest_slices(attribution: Tensor, depth: int) -> Tensor:
    """Find the slice of each volume that holds the most positive relevance.

    The positive part of a map is interpolated linearly from the layer's planes to the input's slices and summed over
    each. Of slices that tie, as those before the first plane's centre do, the one nearest to the middle is taken: a
    layer of one plane says nothing of depth, and shows the middle.

    Args:
        attribution: signed maps of shape ``(N, d, h, w)``. What is not finite counts as 0.
        depth: the number of slices of the input.

    Returns:
        ``(N,)`` int64 on the CPU, from 0 to ``depth - 1``.

    Example:
        >>> import torch
        >>> strongest_slices(torch.tensor([0.0, 4.0, 3.0]).view(1, 3, 1, 1), depth=6)
        tensor([3])

    """
    positive = attribution.detach().double().cpu().nan_to_num(0.0, 0.0, 0.0).clamp(min=0)
    relevance = _along_depth(positive.sum((2, 3), keepdim=True), depth).flatten(1)
    # Interpolation may give equal values apart by a rounding error.
    strongest = relevance >= (1 - 1e-9) * relevance.amax(1, keepdim=True)
    from_middle = (torch.arange(depth) - (depth - 1) / 2).abs()
    return from_middle.expand_as(relevance).masked_fill(~strongest, torch.inf).argmin(1)


def take_slices(volumes: Tensor, slices: Tensor | None) -> Tensor:
    """Take one slice of each volume.

    Args:
        volumes: ``(N, D, ...)``.
        slices: ``(N,)`` int64; ``None`` where these are images already.

    Returns:
        ``(N, ...)``, or ``volumes`` as they are where ``slices`` is ``None``.

    Example:
        >>> import torch
        >>> take_slices(torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([0, 2]))
        tensor([1, 6])

    """
    return volumes if slices is None else volumes[torch.arange(len(volumes)), slices]


def _along_depth(maps: Tensor, depth: int) -> Tensor:
    """``(N, d, h, w)`` to ``(N, depth, h, w)``."""
    size = (depth, *maps.shape[2:])
    return interpolate(maps[:, None], size=size, mode="trilinear", align_corners=False)[:, 0]
