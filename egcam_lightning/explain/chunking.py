"""Cutting work into chunks that fit into memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Elements of a pass: 24 MB of activations; of 224 x 224 images 8 on a CPU and 27 on a device. Tensors of 32 MB and more
# cost a CPU fresh pages from the system every time, which takes longer than computing with them.
_POINT_ELEMENTS = 6 * 2**20

_IMAGE_ELEMENTS_CPU = 5 * 2**18

_IMAGE_ELEMENTS = 2**22

_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",  # a CPU, on POSIX systems
    "not enough memory",  # a CPU, on Windows
    "_alloc_failed",  # cuBLAS, cuDNN, cuFFT, cuSOLVER, cuSPARSE, hipBLAS
    "allocation_failed",  # cuDNN 9
    "unable to find a valid cudnn algorithm",
    "unable to find an engine to execute this computation",  # the same of newer versions
    "resource_exhausted",  # XLA
)


def images_at_once(images: Tensor) -> int:
    """How many images of this shape, ``(n, C, H, W)``, go through the whole model at once."""
    elements = _IMAGE_ELEMENTS_CPU if images.device.type == "cpu" else _IMAGE_ELEMENTS
    return max(1, elements // max(1, images[:1].numel()))


def points_at_once(activation: Tensor) -> int:
    """How many activations of this shape, ``(n, ...)``, go through the part behind the layer at once."""
    return max(1, _POINT_ELEMENTS // max(1, activation[:1].numel()))


class Chunks:
    """Cuts work into chunks that fit into memory.

    Args:
        size: the most at once, ``None`` for as much as the work proposes. Halved, for good, where memory runs out.

    """

    def __init__(self, size: int | None = None) -> None:
        self.size = size

    def run(self, total: int, size: int, work: Callable[[slice], None]) -> None:
        """Call ``work`` on slices of ``range(total)``, of ``size`` or less and about as long as each other."""
        if self.size is not None:
            size = min(size, self.size)
        size = -(-total // max(1, -(-total // max(1, size))))
        start = 0
        while start < total:
            try:
                work(slice(start, min(start + size, total)))
            except (RuntimeError, MemoryError) as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
                size = self.size = size // 2
            else:
                start += size
                continue
            # Outside the handler, where the failed pass is no longer referred to and its memory can be had again.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device.

    Not every library says so in the type of the error: cuBLAS, cuDNN and their like have status codes of their own,
    and cuDNN finds no algorithm where none has room for what it needs besides.
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(phrase in message for phrase in _OUT_OF_MEMORY)
