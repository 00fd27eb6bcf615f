"""What storage keeps of maps and snapshots: half precision and plain values, as small in memory as on disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, adaptive_avg_pool3d

from egcam_lightning.history.records import Snapshot
from egcam_lightning.state_values import typed

# Of 16 images so many cells are 2 kB in half precision.
MAX_CELLS = 64


def pack_maps(attribution: Tensor) -> tuple[Tensor, Tensor]:
    """Round maps to float16 under a power-of-two scale per image.

    The scale puts the largest magnitude of each image just below the top of float16's range, so that small maps lose
    nothing to its subnormal numbers. Packing what was unpacked changes no bit.

    Args:
        attribution: signed maps of shape ``(N, h, w)`` (or ``(N, d, h, w)`` for volumes), magnitudes below 1e38.

    Returns:
        The maps in their shape as float16 and the scales as ``(N,)`` float32, both on the CPU.

    Example:
        >>> import torch
        >>> half, scale = pack_maps(torch.tensor([[[1.0, -3.0]]]))
        >>> half, scale
        (tensor([[[  8192., -24576.]]], dtype=torch.float16), tensor([0.0001]))
        >>> unpack_maps(half, scale)
        tensor([[[ 1., -3.]]])

    """
    maps = attribution.detach().float().cpu()
    peak = torch.where(maps.isfinite(), maps.abs(), 0.0).flatten(1).amax(1)
    mantissa, exponent = torch.frexp(peak)
    # A peak that rounds up to the next power of two takes that power's scale, which is the one it would get next time.
    exponent = torch.where(mantissa.half() == 1, exponent + 1, exponent)
    exponent = torch.where(peak > 0, exponent, -100).clamp(min=-100)
    scale = torch.ldexp(torch.ones_like(peak), exponent - 15)
    return (maps / scale.view(-1, *[1] * (maps.ndim - 1))).half(), scale


def unpack_maps(half: Tensor, scale: Tensor) -> Tensor:
    """Undo :func:`pack_maps`.

    Args:
        half: ``(N, h, w)`` (or ``(N, d, h, w)``) float16.
        scale: ``(N,)`` float32.

    Returns:
        The maps in their shape, float32.

    Example:
        >>> import torch
        >>> unpack_maps(torch.tensor([[[2.0]]], dtype=torch.float16), torch.tensor([0.5]))
        tensor([[[1.]]])

    """
    return half.float() * scale.view(-1, *[1] * (half.ndim - 1))


def round_maps(attribution: Tensor) -> Tensor:
    """Round maps to what storage keeps of them, so that a resumed run goes on from the very same values.

    Args:
        attribution: signed maps of shape ``(N, h, w)`` (or ``(N, d, h, w)`` for volumes).

    Returns:
        The maps in their shape, float32 on the CPU. Rounding again changes nothing.

    Example:
        >>> import torch
        >>> round_maps(torch.tensor([[[0.1]]]))
        tensor([[[0.1000]]])

    """
    return unpack_maps(*pack_maps(attribution))


def coarse_maps(attribution: Tensor) -> Tensor:
    """Average maps over at most ``MAX_CELLS`` cells, with no side longer than it has to be; smaller ones stay.

    Averages, not sums: a value is comparable with those of the finer map.

    Args:
        attribution: signed maps of shape ``(N, h, w)`` (or ``(N, d, h, w)`` for volumes).

    Returns:
        Maps of shape ``(N, h', w')`` (or ``(N, d', h', w')``).

    Example:
        >>> import torch
        >>> coarse_maps(torch.ones(1, 256, 256)).shape, coarse_maps(torch.ones(1, 4, 100)).shape
        (torch.Size([1, 8, 8]), torch.Size([1, 4, 16]))

    """
    grid = attribution.shape[1:]
    longest = max(side for side in range(1, MAX_CELLS + 1) if math.prod(min(side, s) for s in grid) <= MAX_CELLS)
    smaller = [min(longest, side) for side in grid]
    if smaller == list(grid):
        return attribution
    pool: Any = adaptive_avg_pool3d if len(grid) == 3 else adaptive_avg_pool2d
    pooled: Tensor = pool(attribution[:, None], smaller)[:, 0]
    return pooled


def snapshot_to_state(snapshot: Snapshot) -> dict[str, Any]:
    """Turn a snapshot into what a checkpoint may hold: two tensors, numbers and strings.

    Args:
        snapshot: a snapshot of ``N`` images on a layer grid of ``h`` x ``w``.

    Returns:
        A dictionary that ``torch.load(weights_only=True)`` accepts; :func:`snapshot_from_state` undoes it exactly
        where the maps were rounded by :func:`round_maps`.

    Example:
        >>> import torch
        >>> one = torch.ones(1)
        >>> snapshot = Snapshot(0, 9, "epoch", "conv", 1, torch.ones(1, 2, 2), one.long(), one.long(), *[one] * 4)
        >>> snapshot_from_state(snapshot_to_state(snapshot)).key
        (0, 9, 'epoch')

    """
    half, scale = pack_maps(snapshot.attribution)
    names = [name for name in snapshot.values_per_image() if getattr(snapshot, name) is not None]
    # One tensor for all values: every tensor costs a checkpoint some 300 bytes beside its content. Class indices are
    # exact in float32 up to 2**24.
    values = torch.stack([scale, *(getattr(snapshot, name).detach().float().cpu() for name in names)])
    return {
        "epoch": snapshot.epoch,
        "step": snapshot.step,
        "when": snapshot.when,
        "layer": snapshot.layer,
        "baselines": snapshot.baselines,
        "maps": half,
        "names": names,
        "values": values,
        "metrics": {name: float(value) for name, value in snapshot.metrics.items()},
    }


def snapshot_from_state(state: Mapping[str, Any]) -> Snapshot:
    """Undo :func:`snapshot_to_state`.

    Args:
        state: what :func:`snapshot_to_state` returned.

    Returns:
        The snapshot, with tensors on the CPU.

    Raises:
        ValueError: where ``state`` is not such a dictionary.

    Example:
        See :func:`snapshot_to_state`.

    """
    try:
        maps, values, names = state["maps"], state["values"], state["names"]
        if (maps.dtype, values.dtype, values.shape) != (torch.float16, torch.float32, (1 + len(names), len(maps))):
            raise ValueError(f"values of shape {tuple(values.shape)} do not belong to maps of {tuple(maps.shape)}")
        if maps.ndim not in (3, 4) or 0 in maps.shape:
            raise ValueError(f"{tuple(maps.shape)} is no shape of maps")
        scale, *rows = values.unbind()
        declared = Snapshot.values_per_image()
        if set(names) - declared.keys():
            raise ValueError(f"{sorted(names)} are not the values of a snapshot")
        fields = {
            name: row.long() if declared[name].integer else row.clone() for name, row in zip(names, rows, strict=True)
        }
        return Snapshot(
            epoch=typed(state, "epoch", int),
            step=typed(state, "step", int),
            when=typed(state, "when", str),
            layer=typed(state, "layer", str),
            baselines=typed(state, "baselines", int),
            attribution=unpack_maps(maps, scale),
            metrics={name: typed(state["metrics"], name, float) for name in state["metrics"]},
            **fields,
        )
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise ValueError(f"this is not the state of a snapshot: {error!r}") from error
