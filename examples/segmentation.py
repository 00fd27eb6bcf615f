"""Watch a segmentation learn: what in the image speaks for the discs, over the places where they are predicted.

    python examples/segmentation.py

Discs and squares on noise, drawn here, and a small U-Net; about a minute on one core. In a project of yours three
arguments matter: ``score="region"``, the ``target``, and ``masks_key``, where your batch has masks of the objects.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torch.utils.data import DataLoader, Dataset

from egcam_lightning import ExpectedGradCAMCallback

SIZE = 48
BACKGROUND, DISC, SQUARE = range(3)


class Shapes(Dataset[dict[str, Tensor]]):
    """Images with a disc and a square each: ``image`` ``(3, 48, 48)``, ``labels`` ``(48, 48)``, ``disc`` bool."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
        # One in the left half, one in the right, at a height of its own.
        x = torch.tensor([12, 36])[torch.rand(count, 2, generator=generator).argsort(1)][..., None, None]
        y = torch.randint(10, SIZE - 10, (count, 2, 1, 1), generator=generator)
        down, across = (rows - y).abs(), (columns - x).abs()
        disc, square = (down**2 + across**2 < 64)[:, 0], ((down < 7) & (across < 7))[:, 1]
        self.labels = DISC * disc.long() + SQUARE * square.long()
        noise = interpolate(torch.rand(count, 3, 12, 12, generator=generator), SIZE, mode="bilinear")
        colour = torch.rand(count, 3, 1, 1, generator=generator).round()
        self.images = torch.where((self.labels > 0)[:, None], colour, 0.3 + 0.4 * noise)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.images[index], "labels": self.labels[index], "disc": self.labels[index] == DISC}


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.ReLU(),
    )


class UNet(pl.LightningModule):
    """Down twice and up again, with connections across."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = block(3, 12), block(12, 24), block(24, 24)
        self.up2, self.up1 = block(48, 24), block(36, 12)
        self.classifier = nn.Conv2d(12, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, classes, H, W)``."""
        first = self.down1(images)
        second = self.down2(nn.functional.max_pool2d(first, 2))
        lowest = self.bottom(nn.functional.max_pool2d(second, 2))
        up = self.up2(torch.cat([interpolate(lowest, scale_factor=2), second], 1))
        return self.classifier(self.up1(torch.cat([interpolate(up, scale_factor=2), first], 1)))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        return cross_entropy(self(batch["image"]), batch["labels"])

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Intersection over union of the discs."""
        found, disc = self(batch["image"]).argmax(1) == DISC, batch["disc"]
        self.log("val/iou", (found & disc).sum() / (found | disc).sum().clamp(min=1), prog_bar=True)

    def configure_optimizers(self) -> Any:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), 3e-3)


def main(argv: list[str] | None = None) -> ExpectedGradCAMCallback:
    """Train, and say where the page is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    args = parser.parse_args(argv)
    pl.seed_everything(0)
    callback = ExpectedGradCAMCallback(score="region", target=DISC, masks_key="disc", max_overhead=None)
    trainer = pl.Trainer(
        max_epochs=args.epochs, logger=CSVLogger(args.out, "segmentation"), callbacks=[callback], log_every_n_steps=5
    )
    train = DataLoader(Shapes(args.images, seed=0), 16, shuffle=True)
    trainer.fit(UNet(), train, DataLoader(Shapes(64, seed=1), 32))
    print(f"The page: {Path(callback.run_dir) / 'report.html'}")
    return callback


if __name__ == "__main__":
    main()
