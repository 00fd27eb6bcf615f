"""Choosing the probe from the Trainer's data, and what people see of it."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn

from egcam_lightning.batches import Key, find_images, get
from egcam_lightning.data import (
    class_names_of,
    evenly_spaced_batch,
    first_loader,
    normalization_of,
    to_model,
    validation_source,
)
from egcam_lightning.faults import Faults
from egcam_lightning.probe import Probe
from egcam_lightning.snapshot import ProbeImages


def build_probe(
    trainer: Trainer,
    pl_module: LightningModule,
    given: Any,
    num_images: int,
    input_key: Key | None,
    masks_key: Key | None,
    faults: Faults,
) -> Probe | None:
    """Build the probe: the user's batch, else evenly spaced validation images, else training images.

    Returns:
        The probe, or ``None`` where data cannot be indexed, or read, and the first validation batch must be waited for.

    Raises:
        ValueError: where the user's batch has no images, or the data have none.

    """
    if given is not None:
        batch = to_model(trainer, pl_module, given, validating=True)
        size = len(get(batch, find_images(batch, input_key)))
        if size == 0:
            raise ValueError("Expected `probe` to hold at least one image, but its batch is empty.")
        return Probe.from_batch(batch, size, input_key, masks_key)
    loader = validation_source(trainer)
    if loader is None:
        rank_zero_warn("There are no validation data: training images are explained instead.")
        loader = trainer.train_dataloader

    def read() -> tuple[Any, list[int]] | None:
        found = evenly_spaced_batch(loader, num_images)
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
    return Probe.from_batch(batch, num_images, input_key, masks_key)


def probe_images(
    trainer: Trainer,
    pl_module: LightningModule,
    probe: Probe,
    class_names: tuple[str, ...] | None,
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None,
) -> ProbeImages:
    """What people see of the probe, with names and colours from wherever they are known."""
    from egcam_lightning.render import to_display

    loaders = [first_loader(trainer.val_dataloaders), first_loader(trainer.train_dataloader)]
    sources = [
        *(getattr(loader, "dataset", None) for loader in loaders),
        getattr(trainer, "datamodule", None),
        pl_module,
    ]
    mean, std = normalization or normalization_of(*sources) or (None, None)
    if mean is not None and len(mean) not in (1, probe.images.shape[1]):
        mean, std = None, None
    images, restored = to_display(probe.images, mean, std)
    return ProbeImages(
        images=images,
        labels=probe.labels,
        class_names=class_names or class_names_of(*sources),
        fingerprint=probe.fingerprint,
        restored=restored,
        masks=probe.masks,
    )
