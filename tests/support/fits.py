"""The short fit: a small network, a little data, the callback and a quiet Trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from egcam_lightning import ExpectedGradCAMCallback
from tests.support.devices import trainer_arguments
from tests.support.pictures import QUADRANTS, squares


def train_loader(dataset: Dataset | None = None, batch_size: int = 8, **kwargs: Any) -> DataLoader:
    """Four batches of 8, shuffled by the global generator as people do."""
    return DataLoader(dataset or squares(32), batch_size, **{"shuffle": True, **kwargs})


def val_loader(dataset: Dataset | None = None, batch_size: int = 8, **kwargs: Any) -> DataLoader:
    """Two batches of 8."""
    return DataLoader(dataset or squares(16, seed=1), batch_size, **kwargs)


class Net(LightningModule):
    """A small network with everything on board: normalisation, in-place ReLU, dropout, momentum and a schedule."""

    def __init__(self, dropout: float = 0.0, inplace: bool = True) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1),
        )
        self.head = nn.Sequential(
            nn.ReLU(inplace), nn.AvgPool2d(4), nn.Flatten(), nn.Dropout(dropout), nn.Linear(32, QUADRANTS)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", cross_entropy(self(batch[0]), batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)}


class PooledNet(LightningModule):
    """Two convolutions, global average pooling and a linear layer: its maps are complete.

    Args:
        channels: of an image.
        find: from a batch to the images and labels that the training itself uses.
        prepare: what the model does to images first.
        loss: from what it returns and the labels to a loss.
        classes: outputs of the linear layer.
        lr: the learning rate.

    """

    def __init__(
        self,
        channels: int = 3,
        find: Callable[[Any], tuple[Any, Any]] | None = None,
        prepare: Callable[[Tensor], Tensor] | None = None,
        loss: Callable[..., Tensor] = cross_entropy,
        classes: int = 3,
        lr: float = 0.05,
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()
        )
        self.head = nn.Linear(6, classes)
        self.find = find or (lambda batch: (batch[0], batch[1]))
        self.prepare = prepare or (lambda x: x)
        self.loss, self.lr = loss, lr

    def forward(self, images: Tensor) -> Any:
        return self.head(self.features(self.prepare(images)).mean((2, 3)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = self.find(batch)
        return self.loss(self(images), labels)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, labels = self.find(batch)
        self.log("val_loss", self.loss(self(images), labels), batch_size=len(images))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), self.lr)


def make_callback(**kwargs: Any) -> ExpectedGradCAMCallback:
    """The callback, small, raising whatever goes wrong, without a budget; ``metrics=()`` unless told otherwise."""
    defaults = {"num_images": 4, "num_samples": 2, "num_baselines": 4, "metrics": (), "max_overhead": None}
    return ExpectedGradCAMCallback(**{**defaults, "strict": True, **kwargs})


def make_trainer(tmp_path: Any, *callbacks: Callback, **kwargs: Any) -> Trainer:
    """A quiet Trainer of two epochs, with a CSVLogger, without checkpoints; on the CPU where it says what it needs."""
    own = {"accelerator", "devices", "strategy"} & kwargs.keys()
    defaults = {
        "max_epochs": 2,
        **({"accelerator": "cpu"} if own else trainer_arguments()),
        "default_root_dir": tmp_path,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "log_every_n_steps": 1,
    }
    if "logger" not in kwargs and not kwargs.get("barebones"):
        defaults["logger"] = CSVLogger(tmp_path)
    return Trainer(callbacks=list(callbacks), **{**defaults, **kwargs})


def fit(
    tmp_path: Any,
    *callbacks: Callback,
    net: LightningModule | None = None,
    train: Any = None,
    val: Any = None,
    ckpt_path: str | None = None,
    **kwargs: Any,
) -> tuple[Trainer, LightningModule]:
    """Train for two epochs of four steps; ``kwargs`` go to the Trainer."""
    seed_everything(0, verbose=False)
    net = Net() if net is None else net
    trainer = make_trainer(tmp_path, *callbacks, **kwargs)
    trainer.fit(
        net, train_loader() if train is None else train, val_loader() if val is None else val, ckpt_path=ckpt_path
    )
    return trainer, net
