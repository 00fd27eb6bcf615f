"""What people see of the probe: names and colours, from wherever they are known."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn.functional import interpolate

from egcam_lightning.data.loaders import first_loader
from egcam_lightning.data.metadata import class_names_of, normalization_of
from egcam_lightning.data.probe import Probe
from egcam_lightning.history.records import ProbeImages
from egcam_lightning.pictures.pixels import to_display


def normalization_for(
    trainer: Trainer,
    pl_module: LightningModule,
    images: Tensor,
    given: tuple[tuple[float, ...], tuple[float, ...]] | None,
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The mean and standard deviation that images were normalised with, where they are known and fit."""
    mean, std = given or normalization_of(*_sources(trainer, pl_module), images=images) or ((), ())
    fits = mean and not {len(mean), len(std)} - {1, images.shape[1]}
    return (tuple(mean), tuple(std)) if fits else None


def _sources(trainer: Trainer, pl_module: LightningModule) -> list[Any]:
    """Where names and numbers may be found."""
    loaders = [first_loader(trainer.val_dataloaders), first_loader(trainer.train_dataloader)]
    datasets = [getattr(loader, "dataset", None) for loader in loaders]
    return [*datasets, getattr(trainer, "datamodule", None), pl_module]


def probe_images(
    trainer: Trainer,
    pl_module: LightningModule,
    probe: Probe,
    class_names: tuple[str, ...] | None,
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None,
) -> ProbeImages:
    """What people see of the probe, with names and colours from wherever they are known."""
    channels = probe.images.shape[1]
    if normalization is not None and {len(numbers) for numbers in normalization} - {1, channels}:
        raise ValueError(
            f"Expected `mean` and `std` to have {channels} numbers, one a channel, or one for all, but got "
            f"{' and '.join(str(len(numbers)) for numbers in normalization)}."
        )
    images, restored = to_display(
        probe.images, *(normalization_for(trainer, pl_module, probe.images, normalization) or ())
    )
    masks, size = probe.masks, images.shape[1:-1]
    if masks is not None and masks.shape[1:] != size:  # volumes too large to be shown at their own size
        masks = interpolate(masks[:, None].float(), size=size, mode="area")[:, 0] >= 0.5
    return ProbeImages(
        images=images,
        labels=None if probe.labels is None or probe.labels.ndim == 2 else probe.labels,
        class_names=class_names or class_names_of(*_sources(trainer, pl_module)),
        fingerprint=probe.fingerprint,
        restored=restored,
        masks=masks,
    )
