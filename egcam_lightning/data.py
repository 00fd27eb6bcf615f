"""Samples, class names and normalisation from the Trainer's own loaders, without moving them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage
from torch.utils.data import DataLoader, IterableDataset

from egcam_lightning.isolation import isolated


def first_loader(loaders: Any) -> Any:
    """The first loader of what a Trainer holds: a loader, a ``CombinedLoader``, or loaders in lists and mappings."""
    loaders = getattr(loaders, "flattened", loaders)
    if isinstance(loaders, dict):
        loaders = list(loaders.values())
    if isinstance(loaders, (list, tuple)):
        return first_loader(loaders[0]) if loaders else None
    return loaders


@contextmanager
def validation_data(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Have the validation data at hand inside, also where the Trainer sets them up later.

    It then does so as if they had never been there: making loaders may draw from the global generators. Every process
    waits for the others on the way in.
    """
    if trainer.val_dataloaders is not None or not trainer.enable_validation:
        yield
        return
    loop, stage = trainer.fit_loop.epoch_loop.val_loop, trainer.state.stage
    before = dict(vars(loop))
    try:
        trainer.state.stage = RunningStage.VALIDATING
        try:
            with isolated(pl_module):
                loop.setup_data()
        finally:
            trainer.state.stage = stage
        yield
    finally:
        vars(loop).update(before)


def validation_source(trainer: Trainer) -> Any:
    """What makes validation batches: the first of several loaders, or loaders that make each batch together."""
    loaders = trainer.val_dataloaders
    combined = trainer.fit_loop.epoch_loop.val_loop._combined_loader
    return loaders if combined is not None and combined._mode != "sequential" else first_loader(loaders)


def evenly_spaced_batch(loader: Any, count: int) -> tuple[Any, list[int]] | None:
    """Collate samples at evenly spaced indices of a loader's data set.

    The loader itself is not iterated: that would draw from the global generator, and reset persistent workers.

    Args:
        loader: the loader, or a list or mapping of loaders whose batches make one batch together.
        count: how many samples are asked for; fewer are taken where there are fewer.

    Returns:
        The batch and its indices, or ``None`` where the data set cannot be indexed.

    """
    if isinstance(loader, (dict, list, tuple)):
        return _combined_batch(loader, count)
    dataset = getattr(loader, "dataset", None)
    if dataset is None or isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        return None
    try:
        size = len(dataset)
    except (TypeError, NotImplementedError):
        return None
    count = min(count, size)
    if count == 0:
        return None
    indices = [i * size // count for i in range(count)]
    return collate(loader, indices), indices


def _combined_batch(loaders: Any, count: int) -> tuple[Any, list[int]] | None:
    """A batch of a ``CombinedLoader``; its indices are those of the part that has the most."""
    keys = list(loaders) if isinstance(loaders, dict) else range(len(loaders))
    found = [evenly_spaced_batch(loaders[key], count) for key in keys]
    parts = [part for part in found if part is not None]
    if not parts or len(parts) < len(found):
        return None
    batches = [batch for batch, _ in parts]
    batch = dict(zip(keys, batches, strict=True)) if isinstance(loaders, dict) else type(loaders)(batches)
    return batch, max((indices for _, indices in parts), key=len)


def collate(loader: Any, indices: Sequence[int]) -> Any:
    """The samples at ``indices`` of a loader's data set, as one batch of that loader."""
    if isinstance(loader, DataLoader) and loader.batch_size is None and loader.batch_sampler is None:
        return loader.collate_fn(loader.dataset[indices[0]])  # its samples are batches already
    return loader.collate_fn([loader.dataset[index] for index in indices])


def to_model(trainer: Trainer, pl_module: LightningModule, batch: Any, *, validating: bool) -> Any:
    """Bring a batch to the model as the Trainer's own loops do.

    Args:
        trainer: the Trainer.
        pl_module: its module.
        batch: as a loader made it.
        validating: whether it is to arrive as validation batches do; otherwise as training batches do. The usual
            ``on_after_batch_transfer`` asks the Trainer which, to augment the one and not the other.

    """
    stage = trainer.state.stage
    trainer.state.stage = RunningStage.VALIDATING if validating else RunningStage.TRAINING
    try:
        batch = trainer.precision_plugin.convert_input(batch)
        batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
        return trainer.strategy.batch_to_device(batch, dataloader_idx=0)
    finally:
        trainer.state.stage = stage


def class_names_of(*sources: Any) -> tuple[str, ...] | None:
    """Class names, as torchvision data sets and many others keep them, or ``None``.

    Args:
        *sources: where to look: data sets, data modules, modules; wrapped data sets are looked into.

    """
    for source in _unwrapped(sources):
        classes = getattr(source, "classes", None) or getattr(source, "class_names", None)
        if isinstance(classes, (list, tuple)) and classes and all(isinstance(name, (str, int)) for name in classes):
            return tuple(str(name) for name in classes)
        mapping = getattr(source, "class_to_idx", None)
        if isinstance(mapping, dict) and mapping:
            return tuple(str(name) for name, _ in sorted(mapping.items(), key=lambda item: item[1]))
    return None


def normalization_of(*sources: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation that images were normalised with, or ``None`` where nothing says so.

    Looked for in a ``Normalize`` among the transforms (torchvision's, v1 and v2, nested as you like) of the sources.

    Args:
        *sources: where to look, as in :func:`class_names_of`.

    """
    for source in _unwrapped(sources):
        for name in ("transform", "transforms", "val_transform", "val_transforms", "test_transform"):
            for step in _steps(getattr(source, name, None)):
                if type(step).__name__ == "Normalize" and hasattr(step, "mean") and hasattr(step, "std"):
                    return _numbers(step.mean), _numbers(step.std)
    return None


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(float(v) for v in torch.as_tensor(values, dtype=torch.float64).reshape(-1))


def _unwrapped(sources: Sequence[Any]) -> Iterator[Any]:
    for source in sources:
        for _ in range(8):  # Subset of Subset of ...: deep enough
            if source is None:
                break
            yield source
            inner = getattr(source, "dataset", None)
            if inner is None and isinstance(getattr(source, "datasets", None), (list, tuple)):
                inner = source.datasets[0]
            source = inner if inner is not source else None


def _steps(transform: Any, depth: int = 0) -> Iterator[Any]:
    if transform is None or depth > 8:
        return
    yield transform
    for name in ("transforms", "transform"):
        inner = getattr(transform, name, None)
        for step in inner if isinstance(inner, (list, tuple)) else [inner]:
            if callable(step) and step is not transform:
                yield from _steps(step, depth + 1)
