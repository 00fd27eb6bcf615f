"""Networks on large images and grids, and what a fit with the callback takes of memory, disk and checkpoint."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from egcam_lightning import ExpectedGradCAMCallback
from tests.benchmarks.measure import added_memory, device
from tests.support.fits import make_trainer


class Pictures(Dataset):
    """Noise with a bright corner for one class, made when it is asked for; dense labels where they are asked for."""

    def __init__(self, count: int, shape: tuple[int, ...], dense: bool) -> None:
        self.count, self.shape, self.dense = count, shape, dense

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = torch.rand(self.shape, generator=torch.Generator().manual_seed(index))
        corner = tuple(slice(side // 2) for side in self.shape[1:])
        label = index % 2
        image[(slice(None), *corner)] += label
        return image, torch.full(self.shape[1:], label) if self.dense else torch.tensor(label)


class Net(LightningModule):
    """Features and a head; trained by a step or two."""

    def __init__(self, features: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.features, self.head = features, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

    def training_step(self, batch: Any, _: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, _: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


def classifier() -> Net:
    """A grid of 64 x 64 on images of 1024 x 1024."""
    features = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
    head = nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
    return Net(features, head)


def segmentation() -> Net:
    """A grid of 256 x 256, the image's own, between an encoder with its decoder and the logits of each pixel."""
    features = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Upsample(scale_factor=4)),
        *(nn.Conv2d(16, 8, 3, padding=1), nn.ReLU()),
    )
    return Net(features, nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 1)))


def bottleneck() -> Net:
    """The same, explained at its bottleneck of 16 x 16, with all of the decoder behind it."""
    features = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.ReLU(), nn.Conv2d(16, 32, 4, 4), nn.ReLU())
    decoder = [nn.Upsample(scale_factor=16), nn.Conv2d(32, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 5, 1)]
    return Net(features, nn.Sequential(*decoder))


def volumes() -> Net:
    """A grid of 96 x 96 x 96, the volume's own."""
    features = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU())
    head = nn.Sequential(nn.Conv3d(4, 4, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 2))
    return Net(features, head)


@dataclass(frozen=True)
class Case:
    """What is trained, on what."""

    make: Callable[[], Net]
    shape: tuple[int, ...]
    dense: bool = False
    count: int = 8  # images of the probe


CASES = {
    "images of 1024x1024, grid 64x64": Case(classifier, (3, 1024, 1024), count=2),
    "a segmentation of 256x256, grid 256x256": Case(segmentation, (3, 256, 256), dense=True),
    "the same, grid 16x16": Case(bottleneck, (3, 256, 256), dense=True),
    "volumes of 96x96x96, grid 96x96x96": Case(volumes, (1, 96, 96, 96), count=2),
}


@dataclass(frozen=True)
class Taken:
    """Bytes.

    Attributes:
        images: the probe's images in float32.
        peak: by which the snapshot raises the peak of memory, the reading of its images included.
        checkpoint: what a checkpoint holds of the callback beside its images and baselines.
        disk: files of the run for each snapshot.

    """

    images: float
    peak: float
    checkpoint: float
    disk: float


class Measured(ExpectedGradCAMCallback):
    """Measures its first snapshot."""

    peak = 0.0

    def on_train_start(self, *args: Any) -> None:
        self.peak = added_memory(lambda: super(Measured, self).on_train_start(*args))


def measure(name: str) -> Taken:
    """A fit of one step, with a snapshot before it."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    case = CASES[name]
    callback = Measured(
        "features",
        num_images=case.count,
        num_samples=8,
        every_n_epochs=None,
        audit_images=0,
        score="region" if case.dense else "logit",
        max_overhead=None,
        strict=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(
            folder,
            callback,
            max_epochs=1,
            logger=False,
            limit_train_batches=1,
            limit_val_batches=1,
            accelerator="gpu" if device().type == "cuda" else "cpu",
        )
        data = Pictures(64, case.shape, case.dense)
        trainer.fit(case.make(), DataLoader(data, 4), DataLoader(data, 4))
        state, buffer = callback.state_dict(), io.BytesIO()
        torch.save({key: value for key, value in state.items() if key not in ("probe", "baselines", "images")}, buffer)
        disk = sum(f.stat().st_size for f in Path(folder).rglob("*.npz") if "probe" not in f.name)
        return Taken(
            images=4.0 * case.count * torch.Size(case.shape).numel(),
            peak=callback.peak,
            checkpoint=buffer.tell(),
            disk=disk / len(callback.history),
        )


if __name__ == "__main__":
    import sys

    for name in sys.argv[1:] or CASES:
        taken = measure(name)
        print(name, {key: f"{value / 2**20:.1f} MiB" for key, value in vars(taken).items()}, flush=True)
