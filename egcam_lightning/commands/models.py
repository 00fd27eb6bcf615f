"""The models that a command looks at: a checkpoint with its module and data, or weights alone and photographs."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn

from egcam_lightning.commands.sources import add_source, load_class, settings_of, source_of
from egcam_lightning.replaying.checkpoints import AsItIs, Moment, find_checkpoints
from egcam_lightning.replaying.networks import fill, is_named, named_network, read_weights, usual_transform
from egcam_lightning.replaying.photographs import Network, PhotographData, read_photographs
from egcam_lightning.replaying.replay import run_folder


@dataclass(frozen=True, eq=False)
class Model:
    """A model, ready to be looked at.

    Attributes:
        module: the module.
        moment: its weights.
        datamodule: its data.
        name: what people call it.
        folder: where it comes from; ``None`` for a library.
        settings: arguments of the callback.

    """

    module: LightningModule
    moment: Moment
    datamodule: LightningDataModule | None
    name: str
    folder: Path | None
    settings: Mapping[str, Any] = field(default_factory=dict)


def add_models(parser: argparse.ArgumentParser) -> None:
    """Say how models and what they look at are named."""
    add_source(parser)
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="photographs, a folder a class, for weights alone: --model is then timm:NAME, torchvision:NAME or a "
        "torch module, and only needed for files of weights",
    )
    parser.add_argument("--labels", type=Path, metavar="FILE", help="lines 'file class-index', for files in --images")
    parser.add_argument("--size", type=int, default=224, help="side of the images, where no library says it (224)")


def model_of(arguments: argparse.Namespace, name: str) -> Model:
    """Make the model that a command line calls ``name``.

    Raises:
        ValueError: where it cannot be made; says what to write.

    """
    if arguments.images is None:
        if is_named(name):
            raise ValueError(f"{name} looks at photographs: pass --images DIR, a folder of class folders.")
        (found,) = find_checkpoints(_file(name), trust=arguments.trust)
        source = source_of(arguments, found.arguments, found.data_arguments)
        return Model(source.module, found, source.datamodule, found.path.stem, run_folder(found.path), source.settings)
    network, transform, folder = _network(arguments, name)
    photographs = read_photographs(arguments.images, arguments.labels, transform)
    module = Network(network)
    moment = AsItIs.of(module)
    plain = re.sub(r"[^\w.=-]+", "-", name if folder is None else Path(name).stem)
    return Model(module, moment, PhotographData(photographs), plain, folder, settings_of(arguments))


def _network(arguments: argparse.Namespace, name: str) -> tuple[nn.Module, Any, Path | None]:
    if is_named(name):
        return *named_network(name), None
    path = _file(name)
    weights = read_weights(path, trust=arguments.trust)
    if arguments.model is None:
        raise ValueError(
            f"{path} holds weights alone: pass their network as --model torchvision:NAME, timm:NAME or MODULE:NAME."
        )
    if is_named(arguments.model):
        network, transform = named_network(arguments.model, weights)
    else:
        network, transform = load_class(arguments.model, "--model")(), usual_transform(arguments.size)
    if not isinstance(network, nn.Module):
        raise ValueError(f"--model makes a {type(network).__name__}, and no torch module.")
    fill(network, weights, path)
    return network.eval(), transform, path.parent


def _file(name: str) -> Path:
    path = Path(name)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name one checkpoint in it.")
    if not path.is_file():
        raise ValueError(f"There is no checkpoint {path}. Networks of a library are timm:NAME or torchvision:NAME.")
    return path
