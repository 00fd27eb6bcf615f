"""Plain values out of a state, each of the type that it was saved with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

Value = TypeVar("Value")


def typed(state: Mapping[str, Any], name: str, kind: type[Value]) -> Value:
    """``state[name]``, of exactly this type.

    Raises:
        KeyError: where it is missing.
        TypeError: where it is of another.

    """
    value = state[name]
    if type(value) is not kind:
        raise TypeError(f"{name!r} is of {type(value).__name__}, expected {kind.__name__}")
    return value
