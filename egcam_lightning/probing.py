"""Choosing the probe from the Trainer's data, and what people see of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.nn.functional import interpolate

from egcam_lightning.batches import BatchKeys, contents, find_images, find_labels, get
from egcam_lightning.data import balanced_indices, class_names_of, known_labels, normalization_of
from egcam_lightning.display import to_display
from egcam_lightning.faults import Faults
from egcam_lightning.loaders import (
    CannotRead,
    SampleReader,
    batches_itself,
    first_loader,
    num_samples,
    to_model,
    validation_source,
)
from egcam_lightning.probe import Probe
from egcam_lightning.snapshot import ProbeImages

_READ_TO_BALANCE = 32  # samples read for each image to choose, where labels can be had in no other way


def build_probe(
    trainer: Trainer,
    pl_module: LightningModule,
    given: Any,
    num_images: int,
    keys: BatchKeys,
    faults: Faults,
) -> Probe | None:
    """Build the probe: the user's batch or choice, else evenly spaced validation images, else training images.

    Args:
        trainer: the Trainer.
        pl_module: its module.
        given: a batch, indices of the data set, ``"balanced"``, or ``None``.
        num_images: how many images to take, unless ``given`` says which.
        keys: where things are in a batch.
        faults: where a failure to read goes that the user's own choice is not the cause of.

    Returns:
        The probe, or ``None`` where data cannot be indexed, or read, and the first validation batch must be waited for.

    Raises:
        ValueError: where the user's batch has no images, or the data have none; where what the user chose cannot be
            had: an index out of range, data without an index, or without labels to balance.

    """
    chosen = isinstance(given, str) or _as_indices(given) is not None
    if given is not None and not chosen:
        batch = to_model(trainer, pl_module, given, validating=True)
        size = len(get(batch, find_images(batch, keys.input)))
        if size == 0:
            raise ValueError("Expected `probe` to hold at least one image, but its batch is empty.")
        return Probe.from_batch(batch, size, keys)
    loader = validation_source(trainer)
    if loader is None:
        rank_zero_warn("There are no validation data: training images are explained instead.")
        loader = trainer.train_dataloader
    reader = SampleReader(trainer, pl_module)
    if chosen:  # what was asked for and cannot be had is an error
        try:
            indices = _chosen_indices(reader, loader, given, num_images, keys)
            (samples,) = reader.read(loader, [indices])
        except CannotRead as error:
            raise ValueError(f"{error} {error.remedy}") from error
        batch = to_model(trainer, pl_module, samples, validating=True)
        return Probe.from_batch(batch, len(indices), keys)

    def read() -> tuple[Any, list[Any]] | None:
        try:
            found = reader.evenly_spaced(loader, num_images)
        except CannotRead as error:
            faults.warn(f"{error} The images of the first validation batch are explained instead. {error.remedy}")
            return None
        return None if found is None else (to_model(trainer, pl_module, found[0], validating=True), found[1])

    found = faults.guard("reading images to explain", read)
    if found is None:
        return None
    batch, indices = found
    if len(indices) < num_images:
        rank_zero_warn(
            f"Expected at least num_images={num_images} images to explain, but the data set has {len(indices)}; "
            "taking them all."
        )
    return Probe.from_batch(batch, num_images, keys)


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
    if known is not None and keys.label is None:
        return delivered, [known[index] for index in delivered]
    count = min(len(delivered), _READ_TO_BALANCE * num_images)
    pool, labels = [delivered[i * len(delivered) // count] for i in range(count)], []
    for batch in reader.read(loader, [[index] for index in pool]):  # so that no more than a few are in memory
        images = find_images(batch, keys.input)
        path = find_labels(batch, images, key=keys.label)
        if path is None:
            raise ValueError(
                "Expected labels in the validation data to balance `probe='balanced'` by: the data set has no "
                f"`targets` or `labels`, and its samples hold no integer label. They hold {contents(batch)}. Pass "
                "indices as `probe` instead, such as probe=[3, 17, 42]."
            )
        labels.append(int(get(batch, path).reshape(-1)[0]))
    return pool, labels


def probe_images(
    trainer: Trainer,
    pl_module: LightningModule,
    probe: Probe,
    class_names: tuple[str, ...] | None,
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None,
) -> ProbeImages:
    """What people see of the probe, with names and colours from wherever they are known."""
    loaders = [first_loader(trainer.val_dataloaders), first_loader(trainer.train_dataloader)]
    sources = [
        *(getattr(loader, "dataset", None) for loader in loaders),
        getattr(trainer, "datamodule", None),
        pl_module,
    ]
    channels = probe.images.shape[1]
    if normalization is not None and {len(numbers) for numbers in normalization} - {1, channels}:
        raise ValueError(
            f"Expected `mean` and `std` to have {channels} numbers, one a channel, or one for all, but got "
            f"{' and '.join(str(len(numbers)) for numbers in normalization)}."
        )
    mean, std = normalization or normalization_of(*sources, images=probe.images) or (None, None)
    if mean is not None and std is not None and {len(mean), len(std)} - {1, channels}:
        mean, std = None, None
    images, restored = to_display(probe.images, mean, std)
    masks, size = probe.masks, images.shape[1:-1]
    if masks is not None and masks.shape[1:] != size:  # volumes too large to be shown at their own size
        masks = interpolate(masks[:, None].float(), size=size, mode="area")[:, 0] >= 0.5
    return ProbeImages(
        images=images,
        labels=None if probe.labels is None or probe.labels.ndim == 2 else probe.labels,
        class_names=class_names or class_names_of(*sources),
        fingerprint=probe.fingerprint,
        restored=restored,
        masks=masks,
    )
