"""The code in README and documentation runs, page by page, on a small network and a few pictures."""

from __future__ import annotations

import re
import shlex
from functools import wraps
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
import torch
import wandb
import yaml
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

import egcam_lightning
from egcam_lightning import sinks
from egcam_lightning.commands.main import build_parser
from tests.documentation.pages import PAGES, ROOT, blocks
from tests.support.fits import PooledNet, train_loader, val_loader
from tests.support.pictures import squares

WITH_CODE = [name for name, path in PAGES.items() if blocks(path, "python")]
COMMANDS = [
    (name, line.strip())
    for name, path in PAGES.items()
    for _, block in blocks(path, "bash")
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip()
]


class LitModel(PooledNet):
    """A network whose layers have the names that the pages write."""

    def __init__(self) -> None:
        super().__init__(classes=4)
        self.layer3, self.layer4 = self.features[:2], self.features[2:]
        del self.features

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layer4(self.layer3(images)).mean((2, 3)))


class DataModule(LightningDataModule):
    def train_dataloader(self):
        return train_loader()

    def val_dataloader(self):
        return val_loader()


class ClassifierOutputTarget:
    """As that of pytorch-grad-cam, which need not be there."""

    def __init__(self, category: int) -> None:
        self.category = category

    def __call__(self, output: Tensor) -> Tensor:
        return output[..., self.category]


def everything_a_page_may_name(folder: Path) -> dict[str, Any]:
    """The reader's own things, in small."""
    torch.manual_seed(0)
    data = squares(16).tensors
    model = LitModel()
    quiet = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "default_root_dir": folder,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    kept = ModelCheckpoint(folder / "checkpoints")
    trainer = Trainer(**{**quiet, "logger": False, "enable_checkpointing": True}, callbacks=[kept])
    trainer.fit(LitModel(), DataModule())
    return {
        **{name: getattr(egcam_lightning, name) for name in egcam_lightning.__all__},
        "Trainer": lambda **given: Trainer(**{**quiet, "logger": CSVLogger(folder), **given}),
        "LitModel": LitModel,
        "DataModule": DataModule,
        "ClassifierOutputTarget": ClassifierOutputTarget,
        "model": model,
        "datamodule": DataModule(),
        "images": data[0],
        "labels": data[1],
        "training_images": squares(4, seed=2).tensors[0],
        "names": ["top left", "top right", "bottom left", "bottom right"],
        "checkpoint_folder": folder / "checkpoints",
    }


@pytest.mark.parametrize("page", WITH_CODE)
def test_every_python_block_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(sinks, "_registry", dict(sinks._registry))
    monkeypatch.setattr(egcam_lightning.ExpectedGradCAMCallback, "__init__", _small)
    mpl.use("agg")
    names = everything_a_page_may_name(tmp_path)
    for line, block in blocks(PAGES[page], "python"):
        # Padded, so that an error names the page's own line.
        exec(compile("\n" * (line - 1) + block, page, "exec"), names)
    mpl.pyplot.close("all")
    wandb.finish()


_INIT = egcam_lightning.ExpectedGradCAMCallback.__init__


@wraps(_INIT)
def _small(self: Any, *args: Any, **kwargs: Any) -> None:
    """The callback as the page writes it, on fewer images and draws."""
    _INIT(self, *args, **{**kwargs, "num_images": 4, "num_samples": 4, "num_baselines": 4, "strict": True})


def test_few_blocks_are_not_run():
    left_out = [name for name, path in PAGES.items() for _ in re.findall("<!-- not run: ", path.read_text())]
    assert len(left_out) <= 3, left_out


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_every_command_is_one_that_there_is(page, line):
    line = re.sub(r"(\S*){(\S+),(\S+)}(\S*)", r"\1\2\4 \1\3\4", line)  # as the shell does
    words = shlex.split(line, comments=True)
    files = [word for word in words if re.match(r"(examples|tests)/", word)]
    assert [word for word in files if not (ROOT / word).exists()] == []
    if words[:1] == ["egcam"]:
        build_parser().parse_args(words[1:])
    elif words[:1] == ["python"] and files:
        source = (ROOT / files[0]).read_text()
        assert [word for word in words if word.startswith("--") and f'"{word}"' not in source] == []


@pytest.mark.parametrize("page", [name for name, path in PAGES.items() if blocks(path, "yaml")])
def test_every_yaml_block_is_read(page):
    for _, block in blocks(PAGES[page], "yaml"):
        for given in yaml.safe_load(block)["trainer"]["callbacks"]:
            kind = getattr(egcam_lightning, given["class_path"].rpartition(".")[2])
            assert isinstance(kind(**given.get("init_args", {})), egcam_lightning.ExpectedGradCAMCallback)
