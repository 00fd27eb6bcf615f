"""The last audit of a run, on disk: one file of JSON in the run folder, which no code has to be run to read."""

from __future__ import annotations

import base64
import json
import math
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from egcam_lightning.findings.records import AuditRecord
from egcam_lightning.history.files import replace_file

_NAME = "audit.json"
_MAX_FILE = 2**26  # far beyond what an audit writes
_TYPES = {"uint8": np.uint8, "float32": np.float32}


def write_audit(run_dir: str | PathLike[str], record: AuditRecord | None) -> None:
    """Write an audit into a run folder, in place of the one before; ``None`` for none.

    Raises:
        OSError: where the disk does not take it; the file that was there is then still whole.

    """
    if record is None:
        (Path(run_dir) / _NAME).unlink(missing_ok=True)
        return
    replace_file(Path(run_dir) / _NAME, json.dumps(_encode(record.to_state()), allow_nan=False).encode())


def read_audit(run_dir: str | PathLike[str]) -> AuditRecord | None:
    """Read the audit in a run folder; ``None`` where there is none.

    Raises:
        ValueError: where the file is damaged.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_audit(folder, AuditRecord((), (), 0, "", math.inf, "Not tested."))
        ...     read_audit(folder).sentence
        'Not tested.'

    """
    path = Path(run_dir) / _NAME
    if not path.is_file():
        return None
    if path.stat().st_size > _MAX_FILE:
        raise ValueError(f"{path} is larger than {_MAX_FILE >> 20} MiB: no run writes that.")
    try:
        return AuditRecord.from_state(_decode(json.loads(path.read_bytes())))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, or no audit of this package: {type(error).__name__}: {error}") from error


def _encode(value: Any) -> Any:
    if isinstance(value, Tensor):
        kept = value if value.dtype == torch.uint8 else value.float()
        data = base64.b64encode(kept.cpu().contiguous().numpy().tobytes()).decode()
        return {"tensor": str(kept.dtype).removeprefix("torch."), "shape": list(kept.shape), "data": data}
    if isinstance(value, dict):
        return {key: _encode(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_encode(each) for each in value]
    return {"float": repr(value)} if isinstance(value, float) and not math.isfinite(value) else value


def _decode(value: Any) -> Any:
    if isinstance(value, dict) and "tensor" in value:
        array = np.frombuffer(base64.b64decode(value["data"], validate=True), _TYPES[value["tensor"]])
        return torch.from_numpy(array.copy()).reshape(value["shape"])
    if isinstance(value, dict) and "float" in value:
        return float(value["float"])
    if isinstance(value, dict):
        return {key: _decode(each) for key, each in value.items()}
    return [_decode(each) for each in value] if isinstance(value, list) else value
