"""A history as the plain numbers and strings that the page draws from."""

from __future__ import annotations

import base64
import io
from bisect import bisect_right
from collections.abc import Sequence
from math import isfinite, isqrt
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from egcam_lightning.history.history import History
from egcam_lightning.history.records import ProbeImages, Snapshot
from egcam_lightning.metrics.change import floor_between, is_significant
from egcam_lightning.metrics.registry import describe
from egcam_lightning.pictures.volumes import flatten_maps

#: Finer maps are averaged down to this many cells a side: more is not seen on a page, and 16 images over 100 epochs
#: have to stay below 5 MB.
MAX_GRID = 32
#: Longest side of a picture on the page.
MAX_SIDE = 448
#: Above this a picture is stored as JPEG instead of PNG.
MAX_PNG_BYTES = 16_000
#: What the slices of all volumes may take together: the more are shown, the smaller they are.
MAX_SLICES_BYTES = 2_250_000

SEQUENTIAL = ("inferno", "magma", "plasma", "viridis", "cividis")
DIVERGING = ("RdBu_r", "coolwarm", "PuOr_r", "BrBG_r")

Key = tuple[int, int]


def build_payload(histories: Sequence[History], names: Sequence[str]) -> dict[str, Any]:
    """Turn one or two histories into what the page's script reads, ready for JSON.

    Args:
        histories: the runs, in the order in which they are shown.
        names: a name for each.

    Returns:
        A dictionary of strings, numbers, lists and ``None`` for what is missing; its keys are those that
        ``assets/page.js`` reads. Its size, and the time to make it, are linear in the number of snapshots.

    """
    keys = [alignment_keys(history.snapshots) for history in histories]
    positions = sorted({key for run in keys for key in run})
    return {
        "positions": [_position_label(key, positions) for key in positions],
        "perImage": [[one.title, one.page] for one in Snapshot.values_per_image().values() if one.title],
        "metrics": describe(key for history in histories for s in history.snapshots for key in s.metrics),
        "colormaps": {"positive": _colour_tables(SEQUENTIAL), "signed": _colour_tables(DIVERGING)},
        "runs": [
            _run(history, name, run_keys, positions)
            for history, name, run_keys in zip(histories, names, keys, strict=True)
        ],
    }


def alignment_keys(snapshots: Sequence[Snapshot]) -> list[Key]:
    """Place the snapshots of a run on a time that runs share: ``(epoch, rank within the epoch, counted from its end)``.

    Counted from the end, because the last snapshot of an epoch is the one that every run has. The snapshot before
    training gets epoch -1.

    Args:
        snapshots: the snapshots of one run, oldest first.

    Returns:
        One key a snapshot, ascending where epochs are.

    """
    epochs = [-1 if s.when == "start" and i == 0 else s.epoch for i, s in enumerate(snapshots)]
    seen: dict[int, int] = {}
    keys = []
    for epoch in reversed(epochs):
        seen[epoch] = seen.get(epoch, 0) + 1
        keys.append((epoch, -seen[epoch]))
    return keys[::-1]


def encode_maps(attribution: Tensor) -> tuple[bytes, Tensor, tuple[int, int]]:
    """Store signed maps as one byte a cell, each relative to its own largest magnitude.

    Args:
        attribution: ``(N, h, w)``, signed. What is not finite becomes 0.

    Returns:
        The bytes of ``(N, h', w')`` int8 in [-127, 127]; the magnitude ``(N,)`` that 127 stands for; and
        ``(h', w')``, at most ``MAX_GRID`` a side.

    Example:
        >>> import torch
        >>> data, scale, grid = encode_maps(torch.tensor([[[-0.5, 2.0]]]))
        >>> list(memoryview(data).cast("b")), scale.tolist(), grid
        ([-32, 127], [2.0], (1, 2))

    """
    values = attribution.detach().cpu().float().nan_to_num(0.0, 0.0, 0.0)
    height, width = (min(side, MAX_GRID) for side in values.shape[-2:])
    if (height, width) != values.shape[-2:]:
        values = adaptive_avg_pool2d(values, (height, width))
    scale = values.abs().amax((1, 2))
    relative = values / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None, None]
    return (relative * 127).round().to(torch.int8).numpy().tobytes(), scale, (height, width)


def encode_image(image: Tensor, max_side: int = MAX_SIDE, max_png_bytes: int = MAX_PNG_BYTES) -> str:
    """Encode one picture as a data URI: PNG where that is small, which keeps small pictures exact, else JPEG.

    Args:
        image: ``(H, W, 3)`` uint8.
        max_side: a larger picture is shrunk to so many pixels a side.
        max_png_bytes: a larger PNG gives way to JPEG.

    Returns:
        A ``data:`` URI of the picture.

    """
    from PIL import Image

    picture = Image.fromarray(image.detach().cpu().contiguous().numpy())
    picture.thumbnail((max_side, max_side))
    buffer, kind = io.BytesIO(), "png"
    picture.save(buffer, "PNG", optimize=True)
    if buffer.tell() > max_png_bytes:
        buffer, kind = io.BytesIO(), "jpeg"
        picture.save(buffer, "JPEG", quality=88, subsampling=0)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def numbers(values: Tensor | None) -> list[float | None] | None:
    """Round to six digits, which is what a float32 holds; NaN and infinity become ``None``; integers stay.

    Example:
        >>> import torch
        >>> numbers(torch.tensor([0.1, float("nan")]))
        [0.1, None]

    """
    if values is None or not values.is_floating_point():
        return None if values is None else values.tolist()
    return [_number(v) for v in values.detach().cpu().tolist()]


def _run(history: History, name: str, keys: list[Key], positions: list[Key]) -> dict[str, Any]:
    probe, snapshots = history.probe, history.snapshots
    images = probe.images
    if images.ndim not in (4, 5) or not len(images) or images.shape[-1] != 3 or images.dtype != torch.uint8:
        raise ValueError(
            f"The probe's images have shape {tuple(images.shape)} and type {images.dtype}; expected (N, D, H, W, 3) or"
            " (N, H, W, 3) of torch.uint8 with N > 0: pass pictures ready to be shown."
        )
    shown = {int(c) for s in snapshots for c in torch.cat([s.target, s.prediction]).tolist()}
    labels = None if probe.labels is None else probe.labels.tolist()
    maps: list[bytes] = []
    rows: list[dict[str, Any]] = []
    slices: list[list[int]] = []
    for index, snapshot in enumerate(snapshots):
        if snapshot.attribution.ndim != images.ndim - 1 or len(snapshot.attribution) != len(images):
            raise ValueError(
                f"Snapshot {index} has maps of shape {tuple(snapshot.attribution.shape)} for {len(images)} images;"
                f" expected {'(N, h, w)' if probe.depth is None else '(N, d, h, w)'} with one map per image."
            )
        flat = flatten_maps(snapshot.attribution, probe.depth)
        data, scale, grid = encode_maps(flat.signed)
        maps.append(data)
        extra = {}
        if flat.slices is not None:
            # Between two planes what speaks for the class is more than the positive part of their mean.
            data, positive_scale, _ = encode_maps(flat.positive)
            maps.append(data)
            slices.append(flat.slices.tolist())
            extra = {"slices": slices[-1], "positiveScale": numbers(positive_scale)}
        previous = snapshots[index - 1] if index else None
        floor, moved = floor_between(snapshot, previous), is_significant(snapshot, previous)
        share = _number(snapshot.metrics.get("drift/significant"))
        rows.append(
            {
                "epoch": snapshot.epoch,
                "step": snapshot.step,
                "when": snapshot.when,
                "position": bisect_right(positions, keys[index]) - 1,
                "grid": grid,
                "scale": numbers(scale),
                **_values_per_image(snapshot),
                "floor": numbers(floor),  # not the snapshot's own, but what its drift is judged by
                "moved": None if moved is None else [int(m) for m in moved.tolist()],
                "share": share if share is not None or moved is None else _number(moved.float().mean().item()),
                "metrics": {key: _number(value) for key, value in snapshot.metrics.items()},
                **extra,
            }
        )
    return {
        "name": name,
        "layer": snapshots[-1].layer if snapshots else "",
        "fingerprint": probe.fingerprint,
        "restored": probe.restored,
        **_stacks(probe, slices),
        "labels": labels,
        "classes": {str(c): probe.name(c) for c in sorted(shown | set(labels or ())) if c >= 0},
        "at": [bisect_right(keys, key) - 1 for key in positions],
        "snapshots": rows,
        "maps": base64.b64encode(b"".join(maps)).decode(),
    }


def _values_per_image(snapshot: Snapshot) -> dict[str, list[float | None] | None]:
    values = {one.page: getattr(snapshot, name) for name, one in snapshot.values_per_image().items()}
    return {key: numbers(value) for key, value in values.items() if key is not None}


def _stacks(probe: ProbeImages, slices: list[list[int]]) -> dict[str, Any]:
    """Encode the pictures of each image by slice: an image has one, a volume those that some snapshot shows."""
    volumes = probe.images if probe.depth else probe.images[:, None]
    masks = probe.masks if probe.masks is None or probe.depth else probe.masks[:, None]
    # Before the first snapshot, the middle one.
    stacks = [sorted({row[i] for row in slices} or {volumes.shape[1] // 2}) for i in range(len(volumes))]
    side, png_bytes = MAX_SIDE, MAX_PNG_BYTES
    if probe.depth:
        room = MAX_SLICES_BYTES // sum(map(len, stacks))
        side, png_bytes = min(side, isqrt(room)), min(png_bytes, room)  # JPEG takes about a byte a pixel
    images = [{k: encode_image(volumes[i, k], side, png_bytes) for k in stack} for i, stack in enumerate(stacks)]
    outlines = None
    if masks is not None:
        outlines = [{k: _encode_outline(masks[i, k], side) for k in stack} for i, stack in enumerate(stacks)]
    return {
        "width": volumes.shape[3],
        "height": volumes.shape[2],
        "depth": probe.depth,
        "images": images,
        "mean": encode_image(volumes.mean((0, 1), dtype=torch.float32).round().to(torch.uint8)),
        "masks": outlines,
    }


def _encode_outline(mask: Tensor, max_side: int) -> str:
    """Draw the edge of a ``(H, W)`` mask, white beside black so that it shows on any picture; elsewhere transparent."""
    from PIL import Image, ImageChops, ImageFilter

    stencil = Image.fromarray((mask.detach().cpu().to(torch.uint8) * 255).contiguous().numpy())
    stencil.thumbnail((max_side, max_side))
    stencil = stencil.resize((stencil.width * 2, stencil.height * 2))
    inside = ImageChops.subtract(stencil, stencil.filter(ImageFilter.MinFilter(3)))
    outside = ImageChops.subtract(stencil.filter(ImageFilter.MaxFilter(3)), stencil)
    edge = Image.merge("LA", (inside, ImageChops.lighter(inside, outside)))
    buffer = io.BytesIO()
    edge.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _number(value: float | None) -> float | None:
    return None if value is None or not isfinite(value) else float(f"{value:.6g}")


def _position_label(key: Key, positions: list[Key]) -> str:
    epoch, rank = key
    if epoch < 0:
        return "start"
    # 3 for the last snapshot of epoch 3; 3.1, 3.2 for the ones before it.
    earliest = min(r for e, r in positions if e == epoch)
    return str(epoch) if rank == -1 else f"{epoch}.{rank - earliest + 1}"


def _colour_tables(names: Sequence[str]) -> list[dict[str, str]]:
    """256 RGB entries a colour map, from matplotlib, as base64 bytes."""
    import matplotlib
    import numpy as np

    grid = np.linspace(0.0, 1.0, 256)
    return [
        {
            "name": name,
            "table": base64.b64encode(matplotlib.colormaps[name](grid, bytes=True)[:, :3].tobytes()).decode(),
        }
        for name in names
    ]
