"""How often the host waits for a device."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def counted_waits(device: torch.device) -> Iterator[Counter[str]]:
    """How often the host has waited for the device inside, by what torch says of it; known behind the body."""
    counter: Counter[str] = Counter()
    if device.type != "cuda":
        from tests.support import pretended

        with pretended.counted_waits(counter):
            yield counter
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield counter
        finally:
            torch.cuda.set_sync_debug_mode(before)
            counter.update(str(one.message) for one in caught if "synchronizing" in str(one.message))
