"""How much memory is in use."""

from __future__ import annotations

import ctypes

import psutil

_NUMBERS = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class _Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in _NUMBERS]


def bytes_in_use() -> int:
    """What is allocated and not given back, where the C library tells it; else what the process has in memory.

    The latter also counts what the allocator keeps for later, and leaves out what the system has put away: on a busy
    machine it moves by more than the tests allow.
    """
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return psutil.Process().memory_info().rss
    mallinfo2.restype = _Mallinfo2
    found = mallinfo2()
    return found.uordblks + found.hblkhd
