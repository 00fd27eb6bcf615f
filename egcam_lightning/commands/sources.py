"""What a command looks at: modules and data modules, by their names, or as a configuration of LightningCLI has them."""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningDataModule, LightningModule, seed_everything

from egcam_lightning.callback import ExpectedGradCAMCallback


@dataclass(frozen=True, eq=False)
class Source:
    """What a command looks at, and how.

    Attributes:
        module: the module, with any weights.
        datamodule: its data; ``None`` where the module has its own.
        settings: arguments of the callback.

    """

    module: LightningModule
    datamodule: LightningDataModule | None
    settings: Mapping[str, Any] = field(default_factory=dict)


def add_source(parser: argparse.ArgumentParser) -> None:
    """Say how a module and its data are named, and how they are looked at."""
    parser.add_argument(
        "--model", metavar="MODULE:NAME", help="the LightningModule: its class, or a function that makes one"
    )
    parser.add_argument("--data", metavar="MODULE:NAME", help="the LightningDataModule, likewise")
    parser.add_argument("--config", type=Path, metavar="FILE", help="instead, the config.yaml that LightningCLI saved")
    add_settings(parser)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Say how a module is looked at."""
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="an argument of ExpectedGradCAMCallback, such as num_images=32",
    )
    parser.add_argument("--accelerator", default="auto", help="where to compute, as Lightning names it (auto)")
    parser.add_argument("--trust", action="store_true", help="read checkpoints that run code of their authors")


def source_of(
    arguments: argparse.Namespace, module_arguments: Mapping[str, Any], data_arguments: Mapping[str, Any]
) -> Source:
    """Make the module and the data module of a command line.

    Args:
        arguments: of the command line.
        module_arguments: what a checkpoint says that its module was made with.
        data_arguments: the same of its data module.

    Raises:
        ValueError: where one cannot be imported or made; says what to write.

    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # behind all that is installed, which a file of that name must not replace
    config = _read(arguments.config) if arguments.config else {}
    seed = config.get("seed_everything")
    if type(seed) is int:
        seed_everything(seed, verbose=False)
    named = None if arguments.model is None else load_class(arguments.model, "--model")
    if "model" in config:
        module = _configured(config["model"], LightningModule, named, "model")
    elif named is not None:
        module = _made(named, module_arguments, "--model")
    else:
        raise ValueError("Expected `--model MODULE:NAME`, or a `--config` with a model, but got neither.")
    named = None if arguments.data is None else load_class(arguments.data, "--data")
    datamodule = None
    if config.get("data"):
        datamodule = _configured(config["data"], LightningDataModule, named, "data")
    elif named is not None:
        datamodule = _made(named, data_arguments, "--data")
    for made, kind, option in ((module, LightningModule, "--model"), (datamodule, LightningDataModule, "--data")):
        if made is not None and not isinstance(made, kind):
            raise ValueError(f"{option} makes a {type(made).__name__}, and no {kind.__name__}.")
    return Source(module, datamodule, {**_settings_in(config), **settings_of(arguments)})


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of the callback that a command line gives.

    Raises:
        ValueError: where one has no value, or the callback has no such argument.

    """
    known = inspect.signature(ExpectedGradCAMCallback).parameters
    settings = {}
    for text in arguments.set:
        name, equals, value = text.partition("=")
        if not equals or name not in known:
            raise ValueError(
                f"Expected `--set` to be an argument of ExpectedGradCAMCallback and its value, such as num_images=32, "
                f"but got {text!r}."
            )
        settings[name] = yaml.safe_load(value)
    return settings


def load_class(path: str, option: str) -> Callable[..., Any]:
    """Import what ``module:name`` names.

    Raises:
        ValueError: where there is no such thing.

    Example:
        >>> load_class("collections:OrderedDict", "--model").__name__
        'OrderedDict'

    """
    module, _, name = path.replace(":", ".").rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever an import runs
        raise ValueError(
            f"{option} {path} does not import ({type(error).__name__}: {error}). Write it as my.module:Name, of a "
            "module that Python finds from this folder."
        ) from error
    if not callable(found):
        raise ValueError(f"{option} {path} is a {type(found).__name__}, and no class or function.")
    return found  # type: ignore[no-any-return]


def _made(make: Callable[..., Any], known: Mapping[str, Any], option: str) -> Any:
    """Call a class or a function with what is known of its arguments."""
    parameters = inspect.signature(make).parameters
    takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    arguments = {key: one for key, one in known.items() if not key.startswith("_") and (takes_all or key in parameters)}
    try:
        return make(**arguments)
    except TypeError as error:
        raise ValueError(
            f"{option}: {make.__name__} cannot be made of what the checkpoint says of its arguments "
            f"({', '.join(arguments) or 'nothing'}): {error}. Name a function that makes it, or pass --config."
        ) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"--config {path} is no YAML: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"--config {path} is no configuration of LightningCLI.")
    return config


def _configured(section: Any, base: type, named: Callable[..., Any] | None, what: str) -> Any:
    """Make what a section of a configuration says; ``named`` where it does not say the class, or another one."""
    if not isinstance(section, Mapping):
        raise ValueError(f"The configuration has no arguments under {what!r}, but {section!r}.")
    arguments = section.get("init_args", {}) if "class_path" in section else section
    if named is None and "class_path" not in section:
        raise ValueError(f"The configuration does not say the class of its {what}: pass --{what} MODULE:NAME.")
    if named is not None:
        section = arguments
    return _parsed(dict(section), what, lambda parser: _add(parser, base, named, what))


def _add(parser: Any, base: type, named: Callable[..., Any] | None, what: str) -> None:
    if named is None:
        parser.add_subclass_arguments(base, what)
    elif inspect.isclass(named):
        parser.add_class_arguments(named, what)
    else:
        parser.add_function_arguments(named, what)


def _parsed(section: Mapping[str, Any], what: str, add: Callable[[Any], None]) -> Any:
    try:
        from jsonargparse import ArgumentParser
    except ImportError as error:
        raise ValueError(
            'A --config is read by jsonargparse, which is not installed: pip install "jsonargparse[signatures]".'
        ) from error
    parser = ArgumentParser(exit_on_error=False)
    add(parser)
    try:
        return parser.instantiate_classes(parser.parse_object({what: section}))[what]
    except argparse.ArgumentError as error:
        raise ValueError(f"The configuration's {what} cannot be made: {error}") from error


def _settings_in(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the callback, where the run had one."""
    callbacks = (config.get("trainer") or {}).get("callbacks") or []
    for one in callbacks if isinstance(callbacks, list) else [callbacks]:
        if isinstance(one, Mapping) and str(one.get("class_path", "")).endswith("ExpectedGradCAMCallback"):
            found = _parsed(
                one.get("init_args") or {},
                "callback",
                lambda parser: parser.add_class_arguments(ExpectedGradCAMCallback, "callback", instantiate=False),
            )
            settings: dict[str, Any] = dict(vars(found))
            settings.pop("save_dir", None)  # which is the live run's
            return settings
    return {}
