"""Small labelled photographs, and small networks for them: what ``shortcuts_on_photographs.py`` runs on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import photographs
import torch
from digits import block
from photographs import UnusableInputError
from study import Residual
from torch import Tensor, nn
from torchvision.datasets import CIFAR10
from torchvision.models import VisionTransformer
from torchvision.transforms import v2

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_EVERY = 5  # of class folders, one photograph in so many is for validation


@dataclass(frozen=True, eq=False)
class Labelled:
    """Photographs with their classes, for training and for validation.

    Attributes:
        train_images: ``(N, 3, H, W)`` uint8.
        train_labels: ``(N,)`` int64.
        test_images: ``(M, 3, H, W)`` uint8.
        test_labels: ``(M,)`` int64.
        class_names: a name for each class.

    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: Sequence[str]

    def of(self, train: int) -> Labelled:
        """The same with so many photographs to train on, at most."""
        return Labelled(
            self.train_images[:train], self.train_labels[:train], self.test_images, self.test_labels, self.class_names
        )


def load(data: str, side: int) -> Labelled:
    """Photographs by name or from a folder.

    Args:
        data: ``"cifar10"``, which torchvision keeps below ``data``; a ``cifar10.npz`` (``train_images``,
            ``train_labels``, ``test_images``, ``test_labels``, ``class_names``; images ``(N, H, W, 3)`` uint8) or a
            folder with one; a folder of class folders; ``"invented"``: coloured noise, to see that it runs.
        side: what photographs of class folders are resized to.

    Raises:
        UnusableInputError: where there is nothing of the kind.

    """
    if data == "invented":
        return _invented()
    if data == "cifar10":
        return _from_torchvision()
    path = Path(data)
    stored = path / "cifar10.npz" if path.is_dir() else path
    if stored.is_file() and stored.suffix == ".npz":
        return _from_npz(stored)
    if path.is_dir():
        return _from_class_folders(path, side)
    raise UnusableInputError(
        f"There are no photographs at {data}. Write --data cifar10, a folder of class folders, or a folder with a "
        "cifar10.npz."
    )


def network(name: str, classes: int, side: int, folder: Path) -> tuple[nn.Module, dict[str, Any], bool]:
    """A small network by name.

    Args:
        name: ``"resnet20"`` (He et al. 2016), ``"vit"`` (patches of a eighth of a side), or what the ``nets.py`` in a
            folder calls by it.
        classes: how many it tells apart.
        side: of the images.
        folder: where a ``nets.py`` may be.

    Returns:
        The network, mean and standard deviation of its inputs, and whether it is trained.

    Raises:
        UnusableInputError: for a name that is none of these.

    """
    normalisation = {"mean": MEAN, "std": STD}
    if name == "resnet20":
        return _resnet20(classes), normalisation, False
    if name == "vit":
        return VisionTransformer(side, side // 8, 6, 4, 96, 192, num_classes=classes), normalisation, False
    if (folder / "nets.py").is_file():
        _, model, transform = photographs.from_nets(name, folder)
        step = transform.transforms[-1]
        return model, {"mean": tuple(step.mean), "std": tuple(step.std)}, True
    raise UnusableInputError(f"There is no network {name!r}. Write resnet20 or vit as --nets.")


def _resnet20(classes: int) -> nn.Module:
    """ResNet-20 for images of 32x32."""
    stages, width = [], 16
    for outputs, stride in ((16, 1), (32, 2), (64, 2)):
        first = Residual(width, outputs, stride)
        stages.append(nn.Sequential(first, Residual(outputs, outputs, 1), Residual(outputs, outputs, 1)))
        width = outputs
    return nn.Sequential(block(3, 16), *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def _from_torchvision() -> Labelled:
    try:
        train, test = (CIFAR10("data", train=part, download=True) for part in (True, False))
    except (OSError, RuntimeError) as error:  # no network, a proxy, a full disk
        raise UnusableInputError(
            f"CIFAR-10 could not be fetched ({error}). Fetch it where there is a network: torchvision finds it in "
            "data/cifar-10-batches-py."
        ) from error
    images = [torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in (train, test)]
    labels = [torch.tensor(part.targets) for part in (train, test)]
    return Labelled(images[0], labels[0], images[1], labels[1], train.classes)


def _from_npz(path: Path) -> Labelled:
    try:
        with np.load(path) as stored:
            images = [torch.from_numpy(stored[f"{part}_images"]) for part in ("train", "test")]
            labels = [torch.from_numpy(stored[f"{part}_labels"]).long() for part in ("train", "test")]
            names = stored["class_names"].tolist()
    except KeyError as error:
        raise UnusableInputError(f"{path}: {error.args[0]}. It lacks what --help lists.") from error
    train, test = (part.permute(0, 3, 1, 2).contiguous() for part in images)
    return Labelled(train, labels[0], test, labels[1], names)


def _from_class_folders(folder: Path, side: int) -> Labelled:
    found = photographs.in_class_folders(folder)
    shape = v2.Compose([v2.PILToTensor(), v2.Resize(side, antialias=True), v2.CenterCrop(side)])
    images = torch.stack([shape(photograph.open()) for photograph in found])
    labels = torch.tensor([photograph.label for photograph in found])
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]
    test = torch.arange(len(found)) % _EVERY == 0
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    return Labelled(images[~test], labels[~test], images[test], labels[test], names)


def _invented(classes: int = 4, train: int = 256, test: int = 96) -> Labelled:
    """Noise, with a little of a colour for each class."""
    generator = torch.Generator().manual_seed(0)
    count = train + test
    labels = torch.arange(count) % classes
    colour = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1]])[labels][:, :, None, None]
    noise = torch.randn(count, 3, 32, 32, generator=generator)
    images = (128 + 40 * colour + 40 * noise).clamp(0, 255).to(torch.uint8)
    names = ("red", "green", "blue", "yellow")
    return Labelled(images[:train], labels[:train], images[train:], labels[train:], names)
