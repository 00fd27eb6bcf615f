"""What people see of the probe: names and colours, from wherever they are known."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from torch.nn.functional import interpolate

from egcam_lightning.data.loaders import first_loader
from egcam_lightning.data.metadata import class_names_of, normalization_of
from egcam_lightning.data.probe import Probe
from egcam_lightning.history.records import ProbeImages
from egcam_lightning.pictures.pixels import to_display


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
