"""Where the logits are in whatever a model returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

# What image classifiers call their logits, in the order in which they are looked for.
_OUTPUT_KEYS = ("logits", "output", "outputs", "out", "pred", "preds", "prediction", "predictions", "y_hat")


def select_output(output: Any, key: str | int | None = None) -> Any:
    """Find the logits in whatever a model returns.

    Args:
        output: a tensor, mapping, tuple, list, or an object with attributes (a dataclass, a Hugging Face output).
        key: the key, attribute or position, with dots to lead deeper (``"heads.colour"``); ``None``: a tensor itself,
            else the usual names, else the first of a tuple.

    Returns:
        What was found, a tensor unless the key leads elsewhere.

    Raises:
        ValueError: where nothing is found; the message lists what is there.

    """
    if key is not None:
        if isinstance(output, (tuple, list)) and isinstance(key, int) and -len(output) <= key < len(output):
            return output[key]
        if isinstance(output, Mapping) and key in output:
            return output[key]
        if isinstance(key, str) and hasattr(output, key):
            return getattr(output, key)
        if isinstance(key, str) and "." in key:
            outer, inner = key.split(".", 1)
            return select_output(select_output(output, _step(outer)), _step(inner))
        raise ValueError(f"The model's output has no {key!r}; it is {describe(output)}. {_choose(output)}")
    if isinstance(output, Tensor):
        return output
    for name in _OUTPUT_KEYS:
        if isinstance(output, Mapping):
            if name in output:
                return output[name]
        elif isinstance(getattr(output, name, None), Tensor):
            return getattr(output, name)
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0]
    if isinstance(output, Mapping):
        tensors = [value for value in output.values() if isinstance(value, Tensor)]
        if len(tensors) == 1:
            return tensors[0]
    raise ValueError(f"No logits found in the model's output, which is {describe(output)}. {_choose(output)}")


def _step(part: str) -> str | int:
    return int(part) if part.removeprefix("-").isdecimal() else part


def _choose(output: Any) -> str:
    """What to write where the logits have to be chosen from an output."""
    items: Any = _fields(output).items()
    if isinstance(output, Mapping):
        items = output.items()
    elif isinstance(output, (tuple, list)):
        items = enumerate(output)
    for key, value in items:
        if isinstance(value, Tensor):
            return f"Pass `output_key` to choose a part of it, such as output_key={key!r}."
    return "Pass `output_key` where it holds the logits, or a `forward_fn` that returns them."


def _fields(value: Any) -> dict[str, Any]:
    """The tensors among the attributes of an object that is no tensor or container."""
    return {name: field for name, field in getattr(value, "__dict__", {}).items() if isinstance(field, Tensor)}


def describe(value: Any) -> str:
    """Say what a value is, with shapes, for messages."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with keys {list(value)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of ({', '.join(describe(v) for v in value)})"
    fields = list(_fields(value))
    return f"a {type(value).__name__}" + (f" with the fields {fields}" if fields else "")
