"""A folder of photographs as Lightning's data: ``train/CLASS/*.jpg`` and ``val/CLASS/*.jpg``."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, default_collate
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageFolders(pl.LightningDataModule):
    """Photographs in a folder a class, cropped and normalised. Class names and normalisation are found by the callback.

    Args:
        root: the folder that holds ``train`` and ``val``.
        size: side of the images that the model takes.
        batch_size: images a batch.
        workers: processes that read images.
        mean: of the normalisation, a number a channel.
        std: of the normalisation.
        as_dict: batches are ``{"pixel_values": ..., "labels": ...}``, as Hugging Face's models want them.

    """

    def __init__(
        self,
        root: str | PathLike[str],
        size: int = 224,
        batch_size: int = 32,
        workers: int = 2,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        as_dict: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()  # so that checkpoints say which data they are of
        self.root, self.size, self.mean, self.std = Path(root), size, mean, std
        self.loading: dict[str, Any] = {"batch_size": batch_size, "num_workers": workers}
        if as_dict:
            self.loading["collate_fn"] = collate_as_dict

    def setup(self, stage: str | None = None) -> None:
        """Open the folders."""
        as_input = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(self.mean, self.std)]
        crop = [v2.Resize(self.size * 8 // 7), v2.CenterCrop(self.size)]
        augment = [v2.RandomResizedCrop(self.size, scale=(0.5, 1.0)), v2.RandomHorizontalFlip()]
        self.train = ImageFolder(self.root / "train", v2.Compose([*augment, *as_input]))
        self.val = ImageFolder(self.root / "val", v2.Compose([*crop, *as_input]))

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of their labels."""
        return sorted(path.name for path in (self.root / "train").iterdir() if path.is_dir())

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches."""
        return DataLoader(self.train, shuffle=True, **self.loading)

    def val_dataloader(self) -> DataLoader[Any]:
        """All validation images."""
        return DataLoader(self.val, **self.loading)


def collate_as_dict(samples: list[Any]) -> dict[str, torch.Tensor]:
    """A batch under the names that Hugging Face's models take."""
    images, labels = default_collate(samples)
    return {"pixel_values": images, "labels": labels}
