"""Weights alone and a folder of photographs, as a module and data that can be looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")

_BATCH = 32
_HELD_BACK = 8  # one photograph in so many is a baseline, and not explained


class Network(LightningModule):
    """A network without a Lightning module of its own.

    Args:
        network: from images to logits.

    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:
        """Logits of images."""
        return self.network(images)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing to compute: it is there so that there is validation."""


class Photographs(Dataset[tuple[Tensor, int]]):
    """Photographs with a class each.

    Args:
        files: pairs of a file and its class.
        transform: from a PIL image to ``(3, H, W)``.
        classes: a name for each class; ``None`` where they are not known.

    """

    def __init__(
        self,
        files: Sequence[tuple[Path, int]],
        transform: Callable[[Image.Image], Tensor],
        classes: Sequence[str] | None = None,
    ) -> None:
        self.files = list(files)
        self.targets = [label for _, label in self.files]
        self.transform = transform
        self.classes = None if classes is None else list(classes)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        with Image.open(path) as picture:
            return self.transform(picture.convert("RGB")), label


class PhotographData(LightningDataModule):
    """Photographs to be explained and, apart from them, one in eight to serve as baselines.

    Args:
        photographs: all of them.

    """

    def __init__(self, photographs: Photographs) -> None:
        super().__init__()
        count = len(photographs)
        self.folder = str(sorted(str(path) for path, _ in photographs.files))  # what tells these data from others
        self._baselines = Subset(photographs, range(0, count, _HELD_BACK))
        self._explained = Subset(photographs, [i for i in range(count) if i % _HELD_BACK])

    def train_dataloader(self) -> DataLoader[Any]:
        """The baselines."""
        return DataLoader(self._baselines, _BATCH)

    def val_dataloader(self) -> DataLoader[Any]:
        """Those that are explained and audited."""
        return DataLoader(self._explained, _BATCH)


def read_photographs(folder: Path, labels: Path | None, transform: Callable[[Image.Image], Tensor]) -> Photographs:
    """Find the photographs of a folder.

    Args:
        folder: one of class folders; or with ``labels``, of files.
        labels: a file with a line ``file class-index`` for each photograph; ``None``: classes are the folders, in the
            order of their names.
        transform: from a PIL image to ``(3, H, W)``.

    Raises:
        ValueError: where there are too few, or labels do not fit; says what to write.

    """
    if not folder.is_dir():
        raise ValueError(f"--images {folder} is no folder. Write the folder that holds the photographs.")
    if labels is not None:
        photographs = Photographs(listed(folder, labels), transform)
    else:
        files, classes = in_class_folders(folder)
        photographs = Photographs(files, transform, classes)
    if len(photographs) < 2:
        raise ValueError(f"{folder} holds one photograph: hand over some hundred.")
    return photographs


def in_class_folders(folder: Path) -> tuple[list[tuple[Path, int]], list[str]]:
    """The photographs of a folder of class folders, with their classes, and the folders' names in their order.

    Raises:
        ValueError: where there are none; says what to write.

    """
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    files = [(file, index) for index, part in enumerate(folders) for file in _pictures_in(part)]
    if not files:
        loose = len(_pictures_in(folder))
        raise ValueError(
            f"{folder} holds {f'{loose} photographs without labels' if loose else 'no photographs'}. Put them into "
            "one folder for each class, in the order of the network's classes when sorted by name, or pass "
            "--labels FILE with a line 'file class-index' for each photograph."
        )
    return files, [path.name for path in folders]


def _pictures_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def listed(folder: Path, labels: Path) -> list[tuple[Path, int]]:
    """The photographs of a folder that a list names, with their classes.

    Raises:
        ValueError: where a line is of another form, or names a file that is not there; says what to write.

    """
    if not labels.is_file():
        raise ValueError(f"--labels {labels} is no file. Write a list with a line 'file class-index' each.")
    found = []
    for number, line in enumerate(labels.read_text(encoding="utf-8").splitlines(), start=1):
        name, _, label = line.strip().replace(",", " ").replace("\t", " ").rpartition(" ")
        if not line.strip():
            continue
        if not name.strip() or not label.isdecimal():
            raise ValueError(f"{labels}, line {number}: expected 'file class-index', but got {line!r}.")
        path = folder / name.strip()
        if not path.is_file():
            raise ValueError(f"{labels}, line {number}: there is no file {path}. Write names as below {folder}.")
        found.append((path, int(label)))
    if not found:
        raise ValueError(f"{labels} is empty. Write a line 'file class-index' for each photograph.")
    return found
