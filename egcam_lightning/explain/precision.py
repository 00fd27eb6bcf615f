"""In what precision a device really computes, which may be coarser than the type of its tensors says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# TF32 is float32 by type and has as many bits of mantissa as float16.
_PRODUCTS = {"tf32": torch.float16, "bf16": torch.bfloat16}


def resolution(*tensors: Tensor) -> float:
    """The relative rounding of what is computed from floating-point tensors on their device.

    That of the coarsest of their types; under autocast, of its type; of float32, that of the products which
    ``torch.set_float32_matmul_precision`` and its relatives allow.

    Example:
        >>> resolution(torch.ones(1, dtype=torch.float64)), resolution(torch.ones(1, dtype=torch.bfloat16))
        (2.220446049250313e-16, 0.0078125)

    """
    kinds = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    device = tensors[0].device
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        kinds.add(torch.get_autocast_dtype(device.type))
    if torch.float32 in kinds:
        kinds |= {_PRODUCTS[name] for name in _allowed(device) if name in _PRODUCTS}
    return max(torch.finfo(kind).eps for kind in kinds)


def _allowed(device: torch.device) -> set[str]:
    """What products and convolutions of float32 are allowed to be computed in; ``"tf32"`` and ``"bf16"`` matter."""
    backends: Any = torch.backends
    if device.type == "cuda":
        if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
            return set()  # older devices have no TF32, whatever is allowed
        if hasattr(backends, "fp32_precision"):  # torch 2.9; reading the older switches may raise once this is used
            return {backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision}
        return {"tf32"} if backends.cuda.matmul.allow_tf32 or backends.cudnn.allow_tf32 else set()
    if hasattr(backends, "fp32_precision"):
        return {backends.mkldnn.matmul.fp32_precision, backends.mkldnn.conv.fp32_precision}
    return {"bf16"} if torch.get_float32_matmul_precision() == "medium" else set()
