"""Where the images, labels and masks are in a batch, whatever shape the batch has."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Key = str | int
Path = tuple[Key, ...]

# What batches call these things, in the order in which they are looked for.
IMAGE_KEYS = ("image", "images", "pixel_values", "img", "imgs", "x", "input", "inputs", "data")
LABEL_KEYS = ("label", "labels", "target", "targets", "y", "class", "classes")


def find_images(batch: Any, key: Key | None = None) -> Path:
    """Find the images in a batch.

    Args:
        batch: a tensor, or tensors in tuples, lists, mappings and dataclasses, nested as you like.
        key: key, attribute or position of the images; dots lead deeper (``"views.0"``). ``None``: the usual names
            first, else the first tensor that looks like images.

    Returns:
        The way to a tensor of shape ``(B, C, H, W)`` or ``(B, C, D, H, W)``, for :func:`get`.

    Raises:
        ValueError: where there is none; the message lists what there is.

    Example:
        >>> import torch
        >>> find_images((torch.rand(2, 3, 8, 8), torch.tensor([0, 1])))
        (0,)

    """
    if key is not None:
        path = _parse(key)
        found = _try_get(batch, path)
        if not _is_image(found):
            raise ValueError(
                f"Expected images of shape (batch, channels, height, width) under `input_key={key!r}`, but found "
                f"{_describe(found)}. The batch holds {contents(batch)}."
            )
        return path
    leaves = [(path, leaf) for path, leaf in _leaves(batch) if _is_image(leaf)]
    for name in IMAGE_KEYS:
        for path, _ in leaves:
            if path and path[-1] == name:
                return path
    if not leaves:
        raise ValueError(
            "Found no images in the batch: no tensor of shape (batch, channels, height, width). It holds "
            f"{contents(batch)}. Pass `input_key`, or `probe` with a batch of your own."
        )
    return leaves[0][0]


def find_labels(batch: Any, images: Path) -> Path | None:
    """Find the labels that belong to the images at ``images``: integers, one an image, or ``None``."""
    count = len(get(batch, images))
    leaves = [(path, leaf) for path, leaf in _leaves(batch) if path != images and _is_label(leaf, count)]
    for name in LABEL_KEYS:
        for path, _ in leaves:
            if path and path[-1] == name:
                return path
    # In a mapping any other vector of integers (an index, a length) may be anything: take none by guess.
    positional = [path for path, _ in leaves if path and all(isinstance(step, int) for step in path)]
    return positional[0] if positional else None


def find_masks(batch: Any, images: Path, key: Key) -> Path:
    """Find the masks under ``key``: ``(B, H, W)`` or ``(B, 1, H, W)``, nonzero where the object is.

    Raises:
        ValueError: where what is there has another shape.

    """
    path, size = _parse(key), get(batch, images).shape
    found = _try_get(batch, path)
    if not isinstance(found, Tensor) or found.shape not in (
        torch.Size([size[0], *size[2:]]),
        torch.Size([size[0], 1, *size[2:]]),
    ):
        raise ValueError(
            f"Expected masks of shape {(size[0], *size[2:])} under `masks_key={key!r}`, but found {_describe(found)}. "
            f"The batch holds {contents(batch)}."
        )
    return path


def get(batch: Any, path: Path) -> Any:
    """What lies at the end of ``path``."""
    for step in path:
        batch = getattr(batch, str(step)) if dataclasses.is_dataclass(batch) else batch[step]
    return batch


def put(batch: Any, path: Path, value: Any) -> Any:
    """A copy of ``batch`` with ``value`` at the end of ``path``; the batch itself stays as it is."""
    if not path:
        return value
    step, rest = path[0], path[1:]
    inner = put(get(batch, (step,)), rest, value)
    if isinstance(batch, Mapping):
        changed = {**batch, step: inner}
        try:
            return type(batch)(changed)  # type: ignore[call-arg]
        except TypeError:
            return changed
    if isinstance(batch, Sequence):
        position = range(len(batch))[int(step)]
        values = [inner if i == position else item for i, item in enumerate(batch)]
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)  # type: ignore[call-arg]
    return dataclasses.replace(batch, **{str(step): inner})


def take(batch: Any, count: int, size: int) -> Any:
    """The first ``count`` of ``size`` samples of a batch: tensors and lists as long as the batch are cut."""
    if isinstance(batch, Tensor):
        return batch[:count] if batch.ndim and len(batch) == size else batch
    if isinstance(batch, Mapping):
        cut = {key: take(value, count, size) for key, value in batch.items()}
        try:
            return type(batch)(cut)  # type: ignore[call-arg]
        except TypeError:
            return cut
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        fields = [f.name for f in dataclasses.fields(batch) if f.init]
        return dataclasses.replace(batch, **{name: take(getattr(batch, name), count, size) for name in fields})
    if isinstance(batch, tuple):
        values = [take(value, count, size) for value in batch]
        return type(batch)(*values) if hasattr(batch, "_fields") else tuple(values)
    if isinstance(batch, list):
        # A list of tensors is a container; a list of names or sizes, as long as the batch, is a value a sample.
        if any(isinstance(value, (Tensor, Mapping, list, tuple)) for value in batch):
            return [take(value, count, size) for value in batch]
        return batch[:count] if len(batch) == size else batch
    return batch


def _parse(key: Key) -> Path:
    if isinstance(key, int):
        return (key,)
    return tuple(int(part) if part.lstrip("-").isdigit() else part for part in key.split("."))


def _try_get(batch: Any, path: Path) -> Any:
    try:
        return get(batch, path)
    except (KeyError, IndexError, TypeError, AttributeError):
        return None


def _leaves(batch: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    if isinstance(batch, Mapping):
        items: Any = batch.items()
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        items = ((field.name, getattr(batch, field.name)) for field in dataclasses.fields(batch))
    elif isinstance(batch, (list, tuple)):
        items = enumerate(batch)
    else:
        yield path, batch
        return
    for step, value in items:
        yield from _leaves(value, (*path, step))


def _is_image(value: Any) -> bool:
    return (
        isinstance(value, Tensor) and value.ndim in (4, 5) and (value.is_floating_point() or value.dtype == torch.uint8)
    )


def _is_label(value: Any, count: int) -> bool:
    return (
        isinstance(value, Tensor)
        and value.shape in (torch.Size([count]), torch.Size([count, 1]))
        and not value.is_floating_point()
        and not value.is_complex()
    )


def _describe(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def contents(batch: Any) -> str:
    """Say what a batch holds and where, for messages."""
    parts = [f"{'.'.join(map(str, path)) or 'the batch'}: {_describe(leaf)}" for path, leaf in _leaves(batch)]
    return "; ".join(parts[:12]) + ("; ..." if len(parts) > 12 else "") or "nothing"
