"""Recognising a part of a network that is linear, whose gradient is the same at every point."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

# Operations of one input, linear whatever the input is. What picks positions (an index, a slice, a maximum) is none of
# them: the model may have chosen them by the values. Neither is a product: one factor may be computed from the other
# out of autograd's sight, as in ``x * (x > 0)``.
_LINEAR = {
    "AdaptiveAvgPool2DBackward0",
    "AdaptiveAvgPool3DBackward0",
    "AvgPool2DBackward0",
    "AvgPool3DBackward0",
    "CloneBackward0",
    "MeanBackward0",
    "MeanBackward1",
    "PermuteBackward0",
    "ReshapeAliasBackward0",
    "SqueezeBackward0",
    "SqueezeBackward1",
    "SqueezeBackward2",
    "SumBackward0",
    "SumBackward1",
    "ToCopyBackward0",
    "TransposeBackward0",
    "UnsafeViewBackward0",
    "UnsqueezeBackward0",
    "ViewBackward0",
}

_OF_WEIGHTS = {"PermuteBackward0", "TBackward0", "ToCopyBackward0", "TransposeBackward0"}

# Positions of the input, the weight and the bias, where there may be one, among what they are computed from.
_WITH_WEIGHT = {"AddmmBackward0": (1, 2, 0), "LinearBackward0": (0, 1, 2), "MmBackward0": (0, 1, None)}


def is_linear(output: Tensor, leaf: Tensor) -> bool:
    """Whether ``output`` was computed from ``leaf`` by pooling and linear layers alone.

    Read off autograd's record, so the answer holds for every value of the leaf, as far as the model goes the same way
    with it. ``False`` where it cannot be told, such as of weights that want no gradient, which the record does not
    name.

    Args:
        output: any tensor with a gradient function.
        leaf: a leaf that requires a gradient.

    Example:
        >>> import torch
        >>> leaf = torch.rand(2, 3, 4, 4, requires_grad=True)
        >>> head = nn.Linear(3, 5)
        >>> is_linear(head(leaf.mean((2, 3))), leaf), is_linear(head(leaf.relu().mean((2, 3))), leaf)
        (True, False)

    """
    node: Any = output.grad_fn
    while node is not None:
        name = node.name()
        if name.endswith("AccumulateGrad"):
            return node.variable is leaf
        if name in _WITH_WEIGHT:
            data, weight, bias = _WITH_WEIGHT[name]
            if not _is_parameter(node.next_functions[weight][0]):
                return False
            # One without a node takes no part in the gradient, whatever it was computed from.
            offset = None if bias is None else node.next_functions[bias][0]
            if offset is not None and not _is_parameter(offset):
                return False
            node = node.next_functions[data][0]
        elif name in _LINEAR or _is_global_pooling(node) or _is_entry_of_unit(node):
            node = node.next_functions[0][0]
        else:
            return False
    return False


def _is_global_pooling(node: Any) -> bool:
    """Whether a node is how ``AdaptiveAvgPool2d(1)`` ends where its input lies channels last in memory."""
    return bool(node.name() == "AsStridedBackward1" and node.next_functions[0][0].name() == "MeanBackward1")


def _is_entry_of_unit(node: Any) -> bool:
    """Whether a node is where a unit that FSDP2 shards begins, which hands on its one input."""
    return bool(node.name() == "RegisterPostBackwardFunctionBackward" and len(node.next_functions) == 1)


def _is_parameter(node: Any) -> bool:
    """Whether a weight or a bias is a parameter, transposed or converted at most."""
    while node is not None and node.name() in _OF_WEIGHTS:
        node = node.next_functions[0][0]
    return node is not None and node.name().endswith("AccumulateGrad") and isinstance(node.variable, nn.Parameter)
