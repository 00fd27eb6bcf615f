"""Timing and memory, as ratios of things that ran in the same process, in turn."""

from __future__ import annotations

import ctypes
import gc
import itertools
import os
import socket
import statistics
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

RUNS = 5


def device() -> torch.device:
    """A CUDA device where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds(work: Callable[[], Any]) -> float:
    """Seconds that one call takes, its work on the device included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def in_turn(*works: Callable[[], Any], runs: int = RUNS) -> list[float]:
    """Median seconds of each, run in turn after a warm-up, so that a machine that slows down slows all of them."""
    for work in works:
        work()
    times: list[list[float]] = [[] for _ in works]
    for _ in range(runs):
        for taken, work in zip(times, works, strict=True):
            taken.append(seconds(work))
    return [statistics.median(taken) for taken in times]


def added_memory(work: Callable[[], Any]) -> float:
    """Bytes by which a call raises the peak of the memory in use."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return float(torch.cuda.max_memory_allocated() - before)
    # What earlier work has freed goes back to the system first, or this one would find it and add nothing.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _status("VmRSS")
    work()
    return float(_status("VmHWM") - before)


def added_tensors(work: Callable[[], Any]) -> float:
    """Bytes by which a call raises the peak of what tensors take, whatever the system gives for it.

    Exact, where :func:`added_memory` counts what the allocator holds back too; slower, since it records every tensor.
    """
    if torch.cuda.is_available():
        return added_memory(work)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    assert profiler.profiler is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return float(max(itertools.accumulate(sizes, initial=0)))


def received_bytes() -> int:
    """Bytes that this process's connections have received since they were made, by what Linux tells of each of them."""
    total = 0
    for file in Path("/proc/self/fd").iterdir():
        try:
            if not str(file.readlink()).startswith("socket:"):
                continue
            connection = socket.socket(fileno=os.dup(int(file.name)))
        except OSError:  # closed meanwhile
            continue
        with connection:
            if connection.family == socket.AF_INET and connection.type == socket.SOCK_STREAM:
                told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                total += struct.unpack_from("Q", told, 128)[0]
    return total


def _status(field: str) -> int:
    """Bytes, from what Linux tells of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


@dataclass
class Table:
    """The figures, printed once at the end."""

    rows: list[tuple[str, str, float, str, bool]] = field(default_factory=list)

    def add(self, what: str, work: str, figure: float, bound: float, *, at_least: bool = False) -> None:
        """Add a row; it fails where the figure misses its bound."""
        holds = figure >= bound if at_least else figure <= bound
        self.rows.append((what, work, figure, f"{'>=' if at_least else '<='} {bound:g}", holds))
        assert holds, f"{what}, {work}: {figure:.3f}, to reach {'>=' if at_least else '<='} {bound:g}"

    def __str__(self) -> str:
        lines = ["| what | work | measured | to reach | |", "|---|---|---|---|---|"]
        lines += [
            f"| {what} | {work} | {figure:.3g} | {bound} | {'yes' if ok else '**missed**'} |"
            for what, work, figure, bound, ok in self.rows
        ]
        return "\n".join(lines)
