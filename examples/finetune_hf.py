"""Fine-tune a vision transformer of Hugging Face's on a folder of photographs, and watch in W&B what it looks at.

    pip install transformers
    python examples/finetune_hf.py PHOTOGRAPHS --pretrained google/vit-base-patch16-224-in21k

PHOTOGRAPHS holds train/ and val/, and in each a folder a class. Without `--pretrained` a small transformer with random
weights is trained, which needs no network but does not learn much.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from image_folder import ImageFolders
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification

from egcam_lightning import ExpectedGradCAMCallback


class Classifier(pl.LightningModule):
    """A ViT for image classification.

    Args:
        classes: the names of the classes.
        pretrained: a name on Hugging Face's hub, or a folder; ``None`` for a small one with random weights.
        size: side of the images.
        lr: the learning rate.

    """

    def __init__(self, classes: list[str], pretrained: str | None = None, size: int = 224, lr: float = 5e-5) -> None:
        super().__init__()
        self.save_hyperparameters()
        names = dict(enumerate(classes))
        if pretrained:
            self.network = ViTForImageClassification.from_pretrained(pretrained, id2label=names)
        else:
            small = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 192}
            self.network = ViTForImageClassification(ViTConfig(**small, image_size=size, id2label=names))
        self.lr = lr

    def forward(self, pixel_values: Tensor) -> Any:
        """Hugging Face's output, in which the callback finds the logits."""
        return self.network(pixel_values=pixel_values)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        loss = self.network(**batch).loss
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """The accuracy of a batch."""
        right = self(batch["pixel_values"]).logits.argmax(1) == batch["labels"]
        self.log("val/accuracy", right.float().mean(), prog_bar=True, batch_size=len(right))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), self.lr)


def main(argv: list[str] | None = None) -> ExpectedGradCAMCallback:
    """Fine-tune, and say where the page is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--pretrained", metavar="NAME", help="of Hugging Face's hub, or a folder")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--offline", action="store_true", help="keep the W&B run on the disk")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    args = parser.parse_args(argv)

    data = ImageFolders(args.photographs, args.size, mean=(0.5,) * 3, std=(0.5,) * 3, as_dict=True)
    callback = ExpectedGradCAMCallback(probe="balanced", alerts={"consensus": 0.95})
    args.out.mkdir(parents=True, exist_ok=True)
    logger = WandbLogger(project="egcam-hf", save_dir=args.out, offline=args.offline)
    trainer = pl.Trainer(max_epochs=args.epochs, logger=logger, callbacks=[callback], log_every_n_steps=10)
    trainer.fit(Classifier(data.classes, args.pretrained, args.size), data)
    print(f"The page: {Path(callback.run_dir) / 'report.html'}")
    return callback


if __name__ == "__main__":
    main()
