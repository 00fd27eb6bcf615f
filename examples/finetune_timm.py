"""Fine-tune a timm model on a folder of photographs, and watch in W&B what it looks at.

    pip install timm
    python examples/finetune_timm.py PHOTOGRAPHS --model resnet50 --pretrained

PHOTOGRAPHS holds train/ and val/, and in each a folder a class. `--offline` keeps the run on the disk; `wandb sync`
sends it later.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import timm
import torch
from image_folder import ImageFolders
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor
from torch.nn.functional import cross_entropy

from egcam_lightning import ExpectedGradCAMCallback


class Classifier(pl.LightningModule):
    """Any image classifier of timm's.

    Args:
        model: its name in timm.
        classes: how many there are.
        pretrained: begin with timm's weights instead of random ones.
        lr: the learning rate.

    """

    def __init__(self, model: str, classes: int, pretrained: bool = False, lr: float = 3e-4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = timm.create_model(model, pretrained=pretrained, num_classes=classes)
        self.lr = lr

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, classes)``."""
        return self.network(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a batch."""
        images, labels = batch
        loss = cross_entropy(self(images), labels)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """The accuracy of a batch."""
        images, labels = batch
        self.log("val/accuracy", (self(images).argmax(1) == labels).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), self.lr)


def main(argv: list[str] | None = None) -> ExpectedGradCAMCallback:
    """Fine-tune, and say where the page is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--model", default="resnet50", help="a name of timm.list_models()")
    parser.add_argument("--pretrained", action="store_true", help="begin with timm's weights, which are downloaded")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--offline", action="store_true", help="keep the W&B run on the disk")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    args = parser.parse_args(argv)

    data = ImageFolders(args.photographs, args.size)
    callback = ExpectedGradCAMCallback(probe="balanced", alerts={"consensus": 0.95})
    args.out.mkdir(parents=True, exist_ok=True)
    logger = WandbLogger(project="egcam-timm", save_dir=args.out, offline=args.offline)
    trainer = pl.Trainer(max_epochs=args.epochs, logger=logger, callbacks=[callback], log_every_n_steps=10)
    trainer.fit(Classifier(args.model, len(data.classes), args.pretrained), data)
    print(f"The page: {Path(callback.run_dir) / 'report.html'}")
    return callback


if __name__ == "__main__":
    main()
