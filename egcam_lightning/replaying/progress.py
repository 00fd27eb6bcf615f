"""What is finished of a replay, on disk, so that nothing is done twice."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from egcam_lightning.config import CallbackConfig
from egcam_lightning.history.files import replace_file
from egcam_lightning.replaying.checkpoints import Moment, read_checkpoint
from egcam_lightning.training.run_state import RunState, new_run_state

_NAME = "replay.pt"


class Progress:
    """The run state of a replay, kept beside its history after each checkpoint.

    What was kept is taken up where it is of the same settings, module and data, and of the first of these checkpoints,
    as they still are.

    Args:
        folder: where run folders lie.
        config: what the user asked for.
        moments: the checkpoints, in order.
        sources: the module and the data module.

    Attributes:
        run_state: the state, as far as it has got.
        run_dir: the run folder.
        finished: whether all checkpoints have been looked at, and the last one audited.

    """

    def __init__(
        self, folder: Path, config: CallbackConfig, moments: Sequence[Moment], sources: tuple[Any, Any]
    ) -> None:
        self._task = hashlib.sha256(_described((config, sources)).encode()).hexdigest()
        self._done: list[list[str | int]] = []
        self.run_state: RunState = new_run_state(config)
        self.run_dir = folder / config.log_prefix
        self.finished = False
        stamps = [one.stamp for one in moments]
        for place in (self.run_dir, *sorted(folder.glob(f"version_*/{config.log_prefix}"))):
            kept = _read(place / _NAME)
            if kept is None or kept["task"] != self._task or kept["done"] != stamps[: len(kept["done"])]:
                continue
            self.run_state.load_state_dict(kept["state"])
            self.run_state.look_in(place)
            self._done, self.run_dir = kept["done"], place
            self.finished = kept["concluded"] and len(self.run_state.history) == len(stamps)
            break

    def save(self, one: Moment | None = None) -> None:
        """Keep what there is, behind a checkpoint or at the end.

        Raises:
            OSError: where the disk does not take it.

        """
        if one is not None:
            self._done = [*self._done[: len(self.run_state.history) - 1], one.stamp]
        content = {
            "task": self._task,
            "done": self._done,
            "concluded": one is None,
            "state": self.run_state.state_dict(0.0),
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        replace_file(self.run_dir / _NAME, buffer.getvalue())


def _read(path: Path) -> dict[str, Any] | None:
    """What was kept; ``None`` where there is nothing, or nothing that can be read: then it is done anew."""
    if not path.is_file():
        return None
    try:
        kept = read_checkpoint(path)
    except ValueError:
        return None
    return kept if {"task", "done", "concluded", "state"} <= kept.keys() else None


def _described(value: Any) -> str:
    """A value in words that are the same in another process."""
    if isinstance(value, Tensor):
        return hashlib.sha256(repr((value.dtype, value.shape, value.cpu().tolist())).encode()).hexdigest()
    if isinstance(value, (str, int, float, bool, type(None), torch.dtype, Path)):
        return repr(value)
    if isinstance(value, Mapping):
        return repr({str(key): _described(one) for key, one in value.items()})
    if isinstance(value, (list, tuple, set, frozenset)):
        return repr([_described(one) for one in value])
    if is_dataclass(value) and not isinstance(value, type):
        return _described({field.name: getattr(value, field.name) for field in fields(value)})
    name = getattr(value, "__qualname__", None)
    if name is not None:  # a function or a class
        return f"{value.__module__}.{name}"
    # Of a module or a data module the plain values: what it was made with, most of the time.
    plain = {
        key: one
        for key, one in sorted(vars(value).items() if hasattr(value, "__dict__") else ())
        if isinstance(one, (str, int, float, bool, type(None), Path)) and not key.startswith("_")
    }
    return f"{type(value).__module__}.{type(value).__qualname__}{_described(plain)}"
