"""The probe: the fixed images that every snapshot looks at, how they are chosen, and the classes explained on them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from egcam_lightning.data.batch import (
    BatchKeys,
    Path,
    contents,
    find_images,
    find_label_sets,
    find_labels,
    find_masks,
    find_others,
    get,
    rival_labels,
)
from egcam_lightning.data.loaders import CannotRead, SampleReader, batches_itself, num_samples
from egcam_lightning.data.metadata import balanced_indices, known_labels


@dataclass(frozen=True, eq=False)
class Probe:
    """Fixed images, as the model takes them, and what is known of them.

    Attributes:
        images: ``(N, C, H, W)``, rounded to their storage type, on the CPU.
        labels: ``(N,)`` int64, or ``None``; of a multi-label task ``(N, classes)`` bool.
        masks: ``(N, H, W)`` bool, where the object is, or ``None``.
        targets: ``(N,)`` int64, the explained classes, or ``(N, classes)`` bool, sets of them; ``None`` as long as
            they are not settled.
        dtype: the type in which the model takes them.
        others: the model's other inputs, ``(N, ...)`` each, on the CPU.

    """

    images: Tensor
    labels: Tensor | None = None
    masks: Tensor | None = None
    targets: Tensor | None = None
    dtype: torch.dtype = torch.float32
    others: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def from_batch(
        cls,
        batch: Any,
        num_images: int,
        keys: BatchKeys,
    ) -> Probe:
        """Take the first ``num_images`` of a batch that has been through all transfers.

        Raises:
            ValueError: where the batch has no images, or under one of the keys not what is expected there.

        """
        path = find_images(batch, keys.input_key)
        others = find_others(batch, path, keys.additional_keys)
        labels = find_labels(batch, path, others, keys.label_key)
        rivals = [] if labels is None or keys.label_key is not None else rival_labels(batch, path, labels, others)
        if labels is not None and rivals:
            places = [repr(".".join(map(str, place))) for place in (labels, *rivals)]
            rank_zero_warn(
                f"The integers at {places[0]} of the batch are taken for the labels; those at {', '.join(places[1:])} "
                f"would do as well. Pass `label_key`, such as label_key={'.'.join(map(str, labels))!r}, to choose."
            )
        labels = labels or find_label_sets(batch, path, others)
        masks = None if keys.masks_key is None else find_masks(batch, path, keys.masks_key)

        def part(where: Path) -> Tensor:
            found: Tensor = get(batch, where)[:num_images].detach().cpu()
            return found.clone()  # the batch is others' to write to

        images = part(path)
        return cls(
            images=to_storage(images),
            labels=None if labels is None else _as_labels(part(labels)),
            masks=None if masks is None else (part(masks).reshape(len(images), *images.shape[2:]) != 0),
            dtype=images.dtype,
            others=tuple(part(where) for where in others),
        )

    @property
    def fingerprint(self) -> str:
        """A hash of the images and labels: equal fingerprints, same probe."""
        digest = hashlib.sha256(repr((tuple(self.images.shape), str(self.images.dtype))).encode())
        digest.update(self.images.contiguous().view(torch.uint8).numpy().tobytes())
        if self.labels is not None:
            digest.update(self.labels.numpy().tobytes())
        for other in self.others:
            digest.update(other.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def inputs(self, rows: Tensor, device: torch.device) -> tuple[Tensor, ...]:
        """What the model takes for some of them: the images ``(len(rows), C, H, W)``, and ``(len(rows), ...)`` each."""
        return self.images[rows].to(device, self.dtype), *(other[rows].to(device) for other in self.others)

    @property
    def target_sets(self) -> Tensor | None:
        """``(N, classes)`` bool: the sets of classes that are explained, where it is not one class per image."""
        return self.targets if self.targets is not None and self.targets.ndim == 2 else None

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        """The shape of each of the model's inputs, without the images' dimension."""
        return tuple(tensor.shape[1:] for tensor in (self.images, *self.others))

    def with_targets(self, targets: Tensor) -> Probe:
        """The same probe with its explained classes settled."""
        return replace(self, targets=targets.cpu() if targets.ndim == 2 else targets.cpu().long())

    def state_dict(self) -> dict[str, Any]:
        """Everything but what the data set gives again, as plain tensors and strings."""
        return {
            "images": self.images,
            "labels": self.labels,
            "masks": self.masks,
            "targets": self.targets,
            "dtype": str(self.dtype).removeprefix("torch."),
            "others": self.others,
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Probe:
        """The probe that :meth:`state_dict` was taken of.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: where the state is damaged.

        """
        images, labels, masks, targets = (state[name] for name in ("images", "labels", "masks", "targets"))
        dtype, others = getattr(torch, state["dtype"]), tuple(state["others"])
        if images.ndim not in (4, 5) or 0 in images.shape or not isinstance(dtype, torch.dtype):
            raise ValueError(f"images of shape {tuple(images.shape)} and type {dtype} are none")
        for name, rows in (("labels", labels), ("targets", targets), *(("others", other) for other in others)):
            if rows is not None and len(rows) != len(images):
                raise ValueError(f"there are {len(rows)} {name} to {len(images)} images")
        if masks is not None and masks.shape != (len(images), *images.shape[2:]):
            raise ValueError(f"masks have shape {tuple(masks.shape)}, and images {tuple(images.shape)}")
        return cls(images, labels, masks, targets, dtype, others)


def _as_labels(found: Tensor) -> Tensor:
    """``(N,)`` int64, one class per image, as far as there is one; otherwise ``(N, classes)`` bool."""
    if found.ndim < 2 or found.shape[1] == 1:
        return found.reshape(-1).long()
    return found.long().argmax(1) if bool((found.sum(1) == 1).all()) else found.bool()


def to_storage(images: Tensor) -> Tensor:
    """Round images to the type in which a checkpoint keeps them, before anything is computed from them.

    Whole numbers stay as they are; floating numbers become float16 where their range allows, otherwise float32.
    """
    if not images.is_floating_point() or images.dtype == torch.float16:
        return images.clone()
    return images.to(storage_dtype(images))


def storage_dtype(images: Tensor) -> torch.dtype:
    """``torch.float16`` where it holds the values, otherwise ``torch.float32``."""
    fits = bool(images.abs().amax() < torch.finfo(torch.float16).max)  # False for NaN too
    return torch.float16 if fits else torch.float32


_READ_TO_BALANCE = 32  # samples read for each image to choose, where labels can be had in no other way


Guard = Callable[[str, Callable[[], Any]], Any]
"""Does a piece of work, given with its name, and returns what it returns; ``None`` where it fails and may fail."""


def build_probe(
    reader: SampleReader,
    loader: Any,
    given: Any,
    num_images: int,
    keys: BatchKeys,
    to_model: Callable[[Any], Any],
    guard: Guard,
) -> Probe | None:
    """Build the probe: the user's batch or choice, else evenly spaced images.

    Args:
        reader: reads samples of the loader.
        loader: the validation loader, or the training loader where there is none.
        given: a batch, indices of the data set, ``"balanced"``, or ``None``.
        num_images: how many images to take, unless ``given`` says which.
        keys: where things are in a batch.
        to_model: brings a batch to the model, as validation batches are.
        guard: does what may fail without the user's own choice being the cause.

    Returns:
        The probe, or ``None`` where data cannot be indexed, or read, and the first validation batch must be waited for.

    Raises:
        ValueError: where the user's batch has no images, or the data have none; where what the user chose cannot be
            had: an index out of range, data without an index, or without labels to balance.

    """
    if is_batch(given):
        batch = to_model(given)
        size = len(get(batch, find_images(batch, keys.input_key)))
        if size == 0:
            raise ValueError("Expected `probe` to hold at least one image, but its batch is empty.")
        return Probe.from_batch(batch, size, keys)
    if given is not None:  # what was asked for and cannot be had is an error
        try:
            indices = _chosen_indices(reader, loader, given, num_images, keys)
            (samples,) = reader.read(loader, [indices])
        except CannotRead as error:
            raise ValueError(f"{error} {error.remedy}") from error
        return Probe.from_batch(to_model(samples), len(indices), keys)

    def read() -> tuple[Any, list[Any]] | None:
        try:
            found = reader.evenly_spaced(loader, num_images)
        except CannotRead as error:
            rank_zero_warn(f"{error} The images of the first validation batch are explained instead. {error.remedy}")
            return None
        return None if found is None else (to_model(found[0]), found[1])

    found = guard("reading images to explain", read)
    if found is None:
        return None
    batch, indices = found
    if len(indices) < num_images:
        rank_zero_warn(
            f"Expected at least num_images={num_images} images to explain, but the data set has {len(indices)}; "
            "taking them all."
        )
    return Probe.from_batch(batch, num_images, keys)


def is_batch(given: Any) -> bool:
    """Whether the user gave a batch, and not a choice of images."""
    return not (given is None or isinstance(given, str) or _as_indices(given) is not None)


def check_probe(given: Any) -> None:
    """Raise for a choice of images that no data can meet.

    Raises:
        ValueError: for a name other than ``"balanced"``, a single index, and no or negative indices.

    """
    if isinstance(given, int):
        raise ValueError(f"Expected `probe` to hold several indices, or a batch, but got {given!r}. Write [{given}].")
    if isinstance(given, str) and given != "balanced":
        raise ValueError(
            f"Expected `probe` to be 'balanced', indices of the validation data, or a batch, but got {given!r}."
        )
    indices = _as_indices(given)
    if indices is not None and (not indices or min(indices) < 0):
        raise ValueError(
            f"Expected `probe` to hold indices of the validation data, 0 and above, but got {given!r}. Write such as "
            "probe=[3, 17, 42], or None for evenly spaced ones."
        )


def _as_indices(given: Any) -> list[int] | None:
    """``given`` as indices, or ``None`` where it is something else."""
    if isinstance(given, (list, tuple, range)) and all(type(index) is int for index in given):
        return list(given)
    return None


def _chosen_indices(reader: SampleReader, loader: Any, given: Any, num_images: int, keys: BatchKeys) -> list[Any]:
    size = num_samples(loader)
    if not size or batches_itself(loader):
        raise ValueError(
            f"Expected data with an index to choose the images of `probe={given!r}` from, but "
            f"{type(getattr(loader, 'dataset', loader)).__name__} has none. Pass a batch as `probe`, or None for the "
            "first validation batch."
        )
    indices = _as_indices(given)
    if indices is None:
        pool, labels = _labels(reader, loader, num_images, keys)
        return [pool[i] for i in balanced_indices(labels, num_images)]
    if max(indices) >= size:
        raise ValueError(f"Expected `probe` to hold indices between 0 and {size - 1}, but got {max(indices)}.")
    return indices


def _labels(reader: SampleReader, loader: Any, num_images: int, keys: BatchKeys) -> tuple[Sequence[Any], list[int]]:
    """Indices to choose from, and their labels: all where the data set keeps them, else of samples read for it."""
    delivered, known = reader.delivered(loader) or (), known_labels(loader.dataset)
    if known is not None and keys.label_key is None:
        return delivered, [known[index] for index in delivered]
    count = min(len(delivered), _READ_TO_BALANCE * num_images)
    pool, labels = [delivered[i * len(delivered) // count] for i in range(count)], []
    for batch in reader.read(loader, [[index] for index in pool]):  # so that no more than a few are in memory
        images = find_images(batch, keys.input_key)
        path = find_labels(batch, images, key=keys.label_key)
        if path is None:
            raise ValueError(
                "Expected labels in the validation data to balance `probe='balanced'` by: the data set has no "
                f"`targets` or `labels`, and its samples hold no integer label. They hold {contents(batch)}. Pass "
                "indices as `probe` instead, such as probe=[3, 17, 42]."
            )
        labels.append(int(get(batch, path).reshape(-1)[0]))
    return pool, labels
