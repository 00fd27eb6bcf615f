"""Where the images, labels and masks are in a batch, whatever shape the batch has."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Key = str | int

Path = tuple[Key, ...]

# What batches call these things, in the order in which they are looked for.
IMAGE_KEYS = ("image", "images", "pixel_values", "img", "imgs", "x", "input", "inputs", "data")

LABEL_KEYS = ("label", "labels", "target", "targets", "y", "class", "classes")


@dataclass(frozen=True)
class BatchKeys:
    """Where things are in a batch: keys, attributes or positions, with dots to lead deeper.

    Attributes:
        input_key: of the images; ``None`` finds them.
        label_key: of the labels; ``None`` finds them.
        masks_key: of the masks; ``None`` where there are none.
        additional_keys: of the model's other inputs.

    """

    input_key: Key | None = None
    label_key: Key | None = None
    masks_key: Key | None = None
    additional_keys: tuple[Key, ...] = ()


def find_images(batch: Any, key: Key | None = None) -> Path:
    """Find the images in a batch.

    Args:
        batch: a tensor, or tensors in tuples, lists, mappings and dataclasses, nested as you like. A list of images
            ``(C, H, W)`` of one size will do where it has a name.
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
        path = _parse(batch, key)
        found = _try_get(batch, path)
        if not _is_image(found):
            raise ValueError(
                f"Expected images of shape (batch, channels, height, width), floating or uint8, under "
                f"`input_key={key!r}`, but found {_describe(found)}. The batch holds {contents(batch)}. Write the key, "
                f"attribute or position that leads to the images, with dots to lead deeper.{_hint(found)}"
            )
        return path
    paths = [path for path, leaf in _leaves(batch) if _is_image(leaf)]
    if not paths:
        raise ValueError(
            "Found no images in the batch: no tensor of shape (batch, channels, height, width), floating or uint8. It "
            f"holds {contents(batch)}.{_hint(*(leaf for _, leaf in _leaves(batch)))} Have the data set or its "
            "`collate_fn` make such a tensor, or explain a batch of your own: `probe=batch`."
        )
    return _by_name(paths, IMAGE_KEYS) or paths[0]


def find_labels(batch: Any, images: Path, others: Sequence[Path] = (), key: Key | None = None) -> Path | None:
    """Find the labels that belong to the images at ``images``: one per image, or ``None``.

    Labels are integers, or the zeros and ones in floating point that a binary loss takes. Of several the first behind
    the images is taken. What lies at ``others``, the model's other inputs, is none.

    Args:
        batch: as :func:`find_images` takes it.
        images: the way to its images.
        others: the ways to the model's other inputs.
        key: key, attribute or position of the labels, sets of them too (:func:`find_label_sets`); ``None`` finds them.

    Raises:
        ValueError: where what lies under ``key`` is none.

    Example:
        >>> import torch
        >>> find_labels((torch.arange(2), torch.rand(2, 3, 8, 8), torch.tensor([5, 3])), (1,))
        (2,)

    """
    count = len(get(batch, images))
    if key is not None:
        path = _parse(batch, key)
        found = _try_get(batch, path)
        if not _is_label(found, count) and not _is_label_sets(found, count):
            raise ValueError(
                f"Expected labels of {count} images under `label_key={key!r}`, integers of shape ({count},) or zeros "
                f"and ones ({count}, classes), but found {_describe(found)}. The batch holds {contents(batch)}. Write "
                "the key, attribute or position that leads to them, or None."
            )
        return path
    named, positional = _labels(batch, images, others, count)
    return next(iter([*named, *positional]), None)


def rival_labels(batch: Any, images: Path, labels: Path, others: Sequence[Path] = ()) -> list[Path]:
    """What would do as well as the labels that were found at ``labels``: integers, by a label's name or by position."""
    named, positional = _labels(batch, images, others, len(get(batch, images)))
    found = named if labels in named else positional
    return [path for path in found if path != labels and not get(batch, path).is_floating_point()]


def _labels(batch: Any, images: Path, others: Sequence[Path], count: int) -> tuple[list[Path], list[Path]]:
    """The ways to all that may be labels: by name, and by position; the first of each is the likeliest."""
    leaves = [(path, leaf) for path, leaf in _leaves(batch) if path not in (images, *others)]
    named = [path for path, leaf in leaves if _is_label(leaf, count)]
    # In a mapping any other vector of integers (an index, a length) may be anything: take none by guess.
    places = [(p, v) for p, v in leaves if isinstance(v, Tensor) and p and all(isinstance(step, int) for step in p)]
    places.sort(key=lambda place: place[0] < images if all(isinstance(step, int) for step in images) else False)
    # Zeros and ones in floating point may be weights, unless they come first.
    positional = [
        path
        for place, (path, leaf) in enumerate(places)
        if _is_label(leaf, count) and (place == 0 or not leaf.is_floating_point())
    ]
    return _all_by_name(named, LABEL_KEYS), positional


def find_label_sets(batch: Any, images: Path, others: Sequence[Path] = ()) -> Path | None:
    """Find the labels of a multi-label task: zeros and ones ``(B, classes)``, named as labels or second in a tuple."""
    count = len(get(batch, images))
    sets = [p for p, leaf in _leaves(batch) if p not in (images, *others) and _is_label_sets(leaf, count)]
    return _by_name(sets, LABEL_KEYS) or ((1,) if (1,) in sets else None)


def find_others(batch: Any, images: Path, keys: Sequence[Key]) -> tuple[Path, ...]:
    """Find the model's other inputs under ``keys``: tensors with a row per image.

    Raises:
        ValueError: where what is there is none.

    """
    count = len(get(batch, images))
    for key in keys:
        found = _try_get(batch, _parse(batch, key))
        if not isinstance(found, Tensor) or found.shape[:1] != torch.Size([count]):
            raise ValueError(
                f"Expected a tensor with {count} rows, one per image, under {key!r} of `additional_keys`, but found "
                f"{_describe(found)}. The batch holds {contents(batch)}. Give what is the same for all images to the "
                "model in `forward_fn`."
            )
    return tuple(_parse(batch, key) for key in keys)


def find_masks(batch: Any, images: Path, key: Key) -> Path:
    """Find the masks under ``key``: ``(B, H, W)`` or ``(B, 1, H, W)``, nonzero where the object is.

    Raises:
        ValueError: where what is there has another shape.

    """
    path, size = _parse(batch, key), get(batch, images).shape
    found = _try_get(batch, path)
    if not isinstance(found, Tensor) or found.shape not in (
        torch.Size([size[0], *size[2:]]),
        torch.Size([size[0], 1, *size[2:]]),
    ):
        raise ValueError(
            f"Expected masks of shape {(size[0], *size[2:])} under `masks_key={key!r}`, but found {_describe(found)}. "
            f"The batch holds {contents(batch)}. Write the key or position of masks of the images' size, or None."
        )
    return path


def get(batch: Any, path: Path) -> Any:
    """What lies at the end of ``path``; a list of images as one tensor."""
    for step in path:
        batch = getattr(batch, str(step)) if dataclasses.is_dataclass(batch) else batch[step]
    return torch.stack(list(batch)) if _is_list_of_images(batch) else batch


def _parse(batch: Any, key: Key) -> Path:
    if isinstance(key, int) or (isinstance(batch, Mapping) and key in batch):  # WebDataset's keys have dots in them
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
    elif isinstance(batch, (list, tuple)) and not (path and isinstance(path[-1], str) and _is_list_of_images(batch)):
        items = enumerate(batch)
    else:
        yield path, batch
        return
    for step, value in items:
        yield from _leaves(value, (*path, step))


def _by_name(paths: Sequence[Path], names: Sequence[str]) -> Path | None:
    """The path that ends in the first of the names; a list under a name has that name."""
    return next(iter(_all_by_name(paths, names)), None)


def _all_by_name(paths: Sequence[Path], names: Sequence[str]) -> list[Path]:
    """The paths that end in one of the names, in the order of the names."""
    return [
        path
        for name in names
        for path in paths
        if next((step for step in reversed(path) if isinstance(step, str)), None) == name
    ]


def _is_image(value: Any) -> bool:
    return _is_list_of_images(value) or (
        isinstance(value, Tensor) and value.ndim in (4, 5) and (value.is_floating_point() or value.dtype == torch.uint8)
    )


def _is_list_of_images(value: Any) -> bool:
    """Whether a value is a list of images ``(C, H, W)``, all of one size, as those make who collate with ``list``."""
    return (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and all(isinstance(item, Tensor) and item.ndim == 3 and _is_image(item[None]) for item in value)
        and len({item.shape for item in value}) == 1
    )


def _is_label(value: Any, count: int) -> bool:
    if not isinstance(value, Tensor) or value.is_complex() or value.shape not in ((count,), (count, 1)):
        return False
    return not value.is_floating_point() or bool(((value == 0) | (value == 1)).all())


def _is_label_sets(value: Any, count: int) -> bool:
    if not isinstance(value, Tensor) or value.is_complex() or value.ndim != 2 or len(value) != count:
        return False
    return value.shape[1] > 1 and bool(((value == 0) | (value == 1)).all())


def _describe(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _hint(*values: Any) -> str:
    """What to write where images are there, but not as they are expected."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    if any(t.ndim in (4, 5) and not t.is_floating_point() for t in tensors):
        return " Images of other integers: write `image.float()`, or `image.to(torch.uint8)` where they are bytes."
    if any(t.ndim == 3 and (t.is_floating_point() or t.dtype == torch.uint8) for t in tensors):
        return (
            " Images (height, width) want a dimension for their channels: write `image[None]` in the data set. A list "
            "of images (channels, height, width) wants one size, and `torch.stack` or an `input_key`."
        )
    return ""


def contents(batch: Any) -> str:
    """Say what a batch holds and where, for messages."""
    parts = [f"{'.'.join(map(str, path)) or 'the batch'}: {_describe(leaf)}" for path, leaf in _leaves(batch)]
    return "; ".join(parts[:12]) + ("; ..." if len(parts) > 12 else "") or "nothing"
