"""Checkpoints on disk: found, read without running what they hold, and put in order."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from egcam_lightning.explain.isolation import uninitialised

State = Mapping[str, Tensor]
Paths = str | PathLike[str] | Iterable[str | PathLike[str]]

_NAMED = 4  # keys that an error names


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint that Lightning wrote, and when in its run that was.

    Attributes:
        path: the file.
        epoch: the Trainer's epoch.
        global_step: how many optimizer steps it had made.
        step: the step under which the run logged then.
        shapes: the shape of each of its weights.
        folder: where its run kept checkpoints, as far as it says so.
        arguments: what its module was made with (``save_hyperparameters``).
        data_arguments: the same of its data module.

    """

    path: Path
    epoch: int
    global_step: int
    step: int
    shapes: Mapping[str, tuple[int, ...]]
    folder: str
    arguments: Mapping[str, Any]
    data_arguments: Mapping[str, Any]

    @property
    def stamp(self) -> list[str | int]:
        """What tells the file from others, and from what it was before it was written again."""
        status = self.path.stat()
        return [str(self.path.resolve()), status.st_size, status.st_mtime_ns]

    def load_into(self, module: LightningModule, *, trust: bool = False) -> None:
        """Give a module these weights.

        Raises:
            ValueError: where they are another model's; names the keys that differ.

        """
        content = read_checkpoint(self.path, trust=trust)
        module.on_load_checkpoint(content)
        state = content["state_dict"]
        if module.strict_loading and uninitialised(module) is None:
            check_fits(module.state_dict(), state, self.path, type(module).__name__)
        module.load_state_dict(state, strict=module.strict_loading)


@dataclass(frozen=True)
class AsItIs:
    """The weights that a module has already.

    Attributes:
        stamp: what tells them from others.

    """

    stamp: list[str | int]
    epoch: int = 0
    global_step: int = 1  # trained, as far as is known
    step: int = 0

    @classmethod
    def of(cls, module: nn.Module) -> AsItIs:
        """Those of a module."""
        digest = hashlib.sha256()
        for key, value in module.state_dict().items():
            digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return cls([digest.hexdigest()])

    def load_into(self, module: LightningModule, *, trust: bool = False) -> None:
        """Do nothing: they are there."""


Moment = CheckpointFile | AsItIs
"""Whose weights are looked at: those of a moment of training."""


def read_checkpoint(path: Path, *, trust: bool = False) -> dict[str, Any]:
    """Read a file of ``torch.save``, as far as that needs no code of its author.

    Args:
        path: the file.
        trust: whether to read it where it holds more than tensors and plain values, which runs code that it names.

    Returns:
        What it holds, on the CPU; tensors are mapped from the file.

    Raises:
        ValueError: where it is damaged, holds no dictionary, or would have to be trusted; says which types.

    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=not trust, mmap=zipfile.is_zipfile(path) or None)
    except pickle.UnpicklingError as error:
        types = _types_in(path)
        if not types:
            raise ValueError(f"{path} is damaged, or no checkpoint: {str(error).splitlines()[0]}") from error
        raise ValueError(
            f"{path} holds objects of {', '.join(types)}. Reading them runs their code, and may run any. Where you "
            "know who wrote the file, pass --trust (trust=True in Python)."
        ) from error
    except (RuntimeError, EOFError, KeyError, AttributeError, ImportError) as error:
        raise ValueError(f"{path} is damaged, or no checkpoint: {type(error).__name__}: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, and no checkpoint or state dict.")
    return found


def _types_in(path: Path) -> list[str]:
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # whatever a file that is none makes of the code that reads it
        return []


def find_checkpoints(checkpoints: Paths, *, trust: bool = False) -> list[CheckpointFile]:
    """Find the checkpoints of one run, in order of step.

    Args:
        checkpoints: files, or folders that hold them (``*.ckpt``); one or several.
        trust: see :func:`read_checkpoint`.

    Returns:
        At least one; of several at the same step, as ``last.ckpt`` is beside another, the first.

    Raises:
        ValueError: where there are none, where one is no checkpoint of Lightning, and where they are of several runs or
            architectures; says which.

    """
    found = [_look_at(path, trust) for path in _files(checkpoints)]
    found.sort(key=lambda one: (one.global_step, one.epoch, one.path.name == "last.ckpt", one.path.name))
    _check_one_architecture(found)
    kept: list[CheckpointFile] = []
    for one in found:
        if kept and kept[-1].global_step == one.global_step:
            if not _same_weights(kept[-1].path, one.path, trust):
                raise ValueError(
                    f"{kept[-1].path} and {one.path} are of one step with different weights, so of two runs. Replay "
                    "each run by itself: name its folder, or its files."
                )
            continue
        kept.append(one)
    _check_one_run(kept)
    return kept


def check_fits(expected: State, state: State, path: Path, module: str) -> None:
    """Raise unless weights are those of a module.

    Args:
        expected: the module's own weights.
        state: those in the file.
        path: the file.
        module: the module's name.

    Raises:
        ValueError: names the keys that differ.

    """
    differences = _differences(shapes_of(state), shapes_of(expected))
    if differences:
        raise ValueError(f"{path} is a checkpoint of another model than {module}: {differences}.")


def shapes_of(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of each of the weights."""
    return {str(key): tuple(value.shape) for key, value in state.items() if isinstance(value, Tensor)}


def _files(checkpoints: Paths) -> list[Path]:
    several = [checkpoints] if isinstance(checkpoints, (str, PathLike)) else list(checkpoints)
    files: list[Path] = []
    for path in map(Path, several):
        if path.is_dir() and not _is_in_parts(path):
            inside = sorted(path.glob("*.ckpt")) or sorted(path.glob("checkpoints/*.ckpt"))
            if not inside:
                below = sorted({str(found.parent) for found in path.glob("*/checkpoints/*.ckpt")})[:3]
                hint = f"did you mean {' or '.join(below)}?" if below else "name the folder that ModelCheckpoint wrote."
                raise ValueError(f"{path} holds no checkpoints (*.ckpt): {hint}")
            files += inside
        elif path.exists():
            files.append(path)
        else:
            raise ValueError(f"There is no checkpoint {path}.")
    if not files:
        raise ValueError("Expected at least one checkpoint, but got none.")
    for path in filter(Path.is_dir, files):
        raise ValueError(
            f"{path} is a checkpoint in parts, one for each process, which one process cannot read. Pass "
            "`save_distributed_checkpoint=False` to ModelParallelStrategy, which then writes one file."
        )
    return list({path.resolve(): path for path in files}.values())


def _is_in_parts(path: Path) -> bool:
    """Whether a folder is one checkpoint, of a strategy that spreads the weights over processes."""
    return (path / "meta.pt").is_file()


def _look_at(path: Path, trust: bool) -> CheckpointFile:
    content = read_checkpoint(path, trust=trust)
    state = content.get("state_dict")
    if not isinstance(state, Mapping) or not isinstance(content.get("epoch"), int):
        raise ValueError(
            f"{path} is no checkpoint of Lightning: it has no weights under 'state_dict', or no epoch. `egcam audit` "
            "takes weights alone."
        )
    steps = int(content.get("global_step", 0))
    try:
        batches = int(content["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"])
    except (KeyError, TypeError, ValueError):
        batches = steps
    folders = (
        one["dirpath"]
        for one in dict(content.get("callbacks") or {}).values()
        if isinstance(one, Mapping) and isinstance(one.get("dirpath"), str)
    )
    return CheckpointFile(
        path=path,
        epoch=content["epoch"],
        global_step=steps,
        step=max(min(batches, steps - 1), 0),  # Lightning logs the first step as 0, and counts it at different moments
        shapes=shapes_of(state),
        folder=next(folders, ""),
        arguments=dict(content.get("hyper_parameters") or {}),
        data_arguments=dict(content.get("datamodule_hyper_parameters") or {}),
    )


def _same_weights(a: Path, b: Path, trust: bool) -> bool:
    first, second = (read_checkpoint(path, trust=trust)["state_dict"] for path in (a, b))
    return all(torch.equal(first[key], second[key]) for key in first if isinstance(first[key], Tensor))


def _check_one_architecture(found: Sequence[CheckpointFile]) -> None:
    groups: dict[frozenset[tuple[str, tuple[int, ...]]], list[CheckpointFile]] = {}
    for one in found:
        groups.setdefault(frozenset(one.shapes.items()), []).append(one)
    if len(groups) == 1:
        return
    first, second, *_ = groups.values()
    split = " | ".join(" ".join(one.path.name for one in group) for group in groups.values())
    raise ValueError(
        f"The checkpoints are of {len(groups)} architectures: between {first[0].path.name} and {second[0].path.name} "
        f"{_differences(second[0].shapes, first[0].shapes)}. Replay them by themselves: {split}."
    )


def _check_one_run(found: Sequence[CheckpointFile]) -> None:
    """Raise where two runs wrote at the same time of training: a resumed run goes on behind the one before."""
    spans: dict[str, list[int]] = {}
    for one in found:
        spans.setdefault(one.folder, []).append(one.global_step)
    ordered = sorted(spans.items(), key=lambda span: min(span[1]))
    for (a, earlier), (b, later) in pairwise(ordered):
        if min(later) < max(earlier):
            raise ValueError(
                f"The checkpoints are of two runs, which kept them in {a or 'a folder unknown'} and "
                f"{b or 'a folder unknown'}. Replay each run by itself: name its files."
            )


def _differences(has: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> str:
    """What keys are missing, unexpected or of another shape, in words; empty for none."""
    missing, more = [k for k in expected if k not in has], [k for k in has if k not in expected]
    other = [f"{k} {has[k]} instead of {expected[k]}" for k in has if k in expected and has[k] != expected[k]]
    parts = [("missing are", missing), ("unexpected are", more), ("of another shape are", other)]
    return "; ".join(f"{words} {_some(keys)}" for words, keys in parts if keys)


def _some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    return ", ".join(keys[:_NAMED]) + more
