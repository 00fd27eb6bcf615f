"""One line of JSON a snapshot, read back without trusting it."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import Tensor

MAX_LINE = 2**22


def to_json(values: Tensor) -> list[int | float | str | None]:
    """One number per image; the shortest text that gives the same float32 again."""
    if not values.is_floating_point():
        return [int(value) for value in values.tolist()]
    floats = (float(str(value)) for value in values.detach().float().cpu().numpy())
    return [value if math.isfinite(value) else None if math.isnan(value) else str(value) for value in floats]


def from_json(name: str, values: Any, count: int, *, integer: bool) -> Tensor:
    """``(count,)`` int64 or float32, or ``ValueError``."""
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(f"{name} is no list of {count} numbers, one per image")
    if integer:
        return torch.tensor([whole(value) for value in values], dtype=torch.int64)
    return torch.tensor([number(value) for value in values], dtype=torch.float32)


def encode_line(line: dict[str, Any]) -> bytes:
    """A line of JSON, with its end."""
    return json.dumps(line, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def decode_line(line: bytes) -> dict[str, Any]:
    """The object that a line holds; ``ValueError`` where it holds none, is torn, or too long."""
    if not line.endswith(b"\n"):
        raise ValueError(f"it has no end, or is longer than {MAX_LINE >> 20} MiB")
    decoded = json.loads(line, parse_constant=_refuse)
    if not isinstance(decoded, dict):
        raise ValueError("it is no JSON object")
    return decoded


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def whole(value: Any, low: int = -(2**63), high: int = 2**63 - 1) -> int:
    """A whole number between two others, or ``ValueError``."""
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{str(value)[:80]!r} is no whole number from {low} to {high}")
    return value


def grid_size(value: Any, axes: int) -> tuple[int, ...]:
    """The size of a grid with so many axes, or ``ValueError``."""
    if not isinstance(value, list) or len(value) != axes:
        raise ValueError(f"{str(value)[:80]} is no size along {axes} axes")
    return tuple(whole(side, 1, 2**20) for side in value)


def number(value: Any) -> float:
    """A number, NaN and the infinities included, or ``ValueError``."""
    special = {None: math.nan, "inf": math.inf, "-inf": -math.inf}
    if value is None or value in ("inf", "-inf"):
        return special[value]
    if type(value) not in (int, float):
        raise ValueError(f"{str(value)[:80]!r} is no number")
    return float(value)


def text(value: Any) -> str:
    """A string, or ``ValueError``."""
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:80]!r} is no text")
    return value
