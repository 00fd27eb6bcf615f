"""What the studies share: small networks, their training, and tables."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from digits import NUM_CLASSES, block
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.nn import functional as F


class VGG(nn.Module):
    """Four blocks of convolution and pooling, and a head of two layers that sees positions.

    Its blocks are at ``features.0`` to ``features.3``, of 32, 16, 8 and 8 cells a side for images of 64 x 64.
    """

    layers: Mapping[str, str] = {"last": "features.3", "earlier": "features.1"}

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            block(3, 16, stride=2),
            nn.Sequential(block(16, 32), nn.MaxPool2d(2)),
            nn.Sequential(block(32, 64), nn.MaxPool2d(2)),
            block(64, 64),
        )
        self.pool = nn.MaxPool2d(4)
        self.classifier = nn.Sequential(nn.Linear(64 * 4, 64), nn.ReLU(inplace=True), nn.Linear(64, NUM_CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, classes)`` of images ``(B, 3, 64, 64)``."""
        return self.classifier(self.pool(self.features(images)).flatten(1))


class Residual(nn.Module):
    """Two convolutions, and a way around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = block(inputs, outputs, stride)
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))
        project = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.around = nn.Identity() if inputs == outputs and stride == 1 else project

    def forward(self, inputs: Tensor) -> Tensor:
        """``(B, K, h, w)``."""
        return F.relu(self.second(self.first(inputs)) + self.around(inputs))


class ResNet(nn.Module):
    """Three stages of one residual block, global average pooling, one linear layer.

    Its stages have 32, 16 and 8 cells a side for images of 64 x 64.
    """

    layers: Mapping[str, str] = {"last": "layer3", "earlier": "layer2"}

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 16, stride=2)
        self.layer1 = Residual(16, 16, 1)
        self.layer2 = Residual(16, 32, 2)
        self.layer3 = Residual(32, 64, 2)
        self.classifier = nn.Linear(64, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, classes)`` of images ``(B, 3, 64, 64)``."""
        return self.classifier(self.layer3(self.layer2(self.layer1(self.stem(images)))).mean((2, 3)))


def seeded(build: Callable[[], nn.Module], seed: int) -> Any:
    """What ``build`` makes with weights drawn from ``seed``; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def normalised(images: Tensor) -> Tensor:
    """Model inputs ``(N, 3, H, W)`` of uint8 images."""
    return (images.float() / 255 - 0.5) / 0.25


def fit(model: nn.Module, images: Tensor, labels: Tensor, *, epochs: int, seed: int, lr: float = 5e-3) -> nn.Module:
    """Train a classifier with AdamW and a one-cycle schedule, and leave it in evaluation mode.

    Args:
        model: from images to logits.
        images: ``(N, 3, H, W)``, model inputs.
        labels: ``(N,)``.
        epochs: how often every image is seen.
        seed: of the order of the images.
        lr: the largest learning rate.

    Returns:
        The model.

    """
    generator = torch.Generator().manual_seed(seed)
    size, steps = 64, len(images) // 64
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=generator)[: steps * size].view(steps, size):
            loss = F.cross_entropy(model(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images ``(N, 3, H, W)`` whose label ``(N,)`` the model gives."""
    with torch.no_grad():
        return float((model.eval()(images).argmax(1) == labels).float().mean())


def mean_spread(values: Iterable[float], digits: int = 3) -> str:
    """``mean ± standard deviation``; what is not a number is left out, and nothing but that is a dash."""
    kept = torch.tensor([value for value in values if value == value], dtype=torch.float64)
    if len(kept) == 0:
        return "-"
    return f"{float(kept.mean()):.{digits}f} ± {float(kept.std(correction=0)):.{digits}f}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def write_csv(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write one line a record, with the keys of the first as header."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)


class Progress:
    """Prints what is done, and the seconds since the start."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()

    def __call__(self, text: str) -> None:
        """Print a line at once."""
        print(f"[{time.perf_counter() - self._begin:5.0f} s] {text}", flush=True)


def two_threads() -> None:
    """Use two cores at most: what the studies' times are given for."""
    torch.set_num_threads(min(2, torch.get_num_threads()))


def quiet_trainer(callback: Callback, epochs: int, **more: Any) -> Trainer:
    """A trainer on the CPU that keeps and prints nothing by itself.

    Args:
        callback: what watches it.
        epochs: of the fit.
        **more: further arguments of the trainer.

    """
    return Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[callback],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        **more,
    )
