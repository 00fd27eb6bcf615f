"""Runs that are over: with the callback and without, and what they were of."""

from __future__ import annotations

import pytest
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.support.fits import PooledNet, fit, make_callback, train_loader, val_loader

SETTINGS = {"num_images": 6, "num_samples": 64, "num_baselines": 16, "metrics": ("consensus",)}


class Net(PooledNet):
    """The network of these runs."""

    def __init__(self) -> None:
        super().__init__(classes=4, lr=0.3)


class Data(LightningDataModule):
    """The data of these runs."""

    def train_dataloader(self):
        return train_loader()

    def val_dataloader(self):
        return val_loader()


@pytest.fixture(scope="session")
def live(tmp_path_factory):
    """A run of four epochs with the callback: its folder, and the callback."""
    folder = tmp_path_factory.mktemp("live")
    callback = make_callback(**SETTINGS)
    checkpoints = ModelCheckpoint(folder / "checkpoints", save_top_k=-1, save_last=True)
    fit(folder, callback, checkpoints, net=Net(), max_epochs=4, enable_checkpointing=True)
    return folder, callback
