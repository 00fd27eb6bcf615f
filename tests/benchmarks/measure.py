"""Timing and memory, as ratios of things that ran in the same process, in turn."""

from __future__ import annotations

import gc
import os
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch

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
    process = psutil.Process(os.getpid())
    before = peak = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return float(max(peak, process.memory_info().rss) - before)


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
