"""The model of the project: a network of torchvision's."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torchvision
from torch import Tensor
from torch.nn.functional import cross_entropy


class Classifier(pl.LightningModule):
    """Any classifier of torchvision's.

    Args:
        network: its name, one of ``torchvision.models.list_models()``.
        classes: how many classes there are.
        lr: the learning rate.

    """

    def __init__(self, network: str = "resnet18", classes: int = 10, lr: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = torchvision.models.get_model(network, num_classes=classes)
        self.lr = lr

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, classes)``."""
        return self.network(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a batch."""
        images, labels = batch
        return cross_entropy(self(images), labels)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """The accuracy of a batch."""
        images, labels = batch
        self.log("val/accuracy", (self(images).argmax(1) == labels).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), self.lr)
