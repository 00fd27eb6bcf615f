"""Fits in several processes, and what each of them had in the end; and processes that are threads."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.tensor import DTensor

from egcam_lightning import ExpectedGradCAMCallback
from egcam_lightning.history.codec import snapshot_from_state, snapshot_to_state
from tests.support.devices import chosen
from tests.support.faulty import heard
from tests.support.fits import fit


class WithoutData:
    """A module of which one process may have no data: it waits for nothing in validation, which would not end there."""

    def __init__(self) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass


class Report(Callback):
    """Writes a file a process: what its callback holds, since nothing of it comes back from a forked worker."""

    def __init__(self, folder: Path, watched: ExpectedGradCAMCallback | None) -> None:
        self.folder, self.watched = folder, watched

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.heard = heard()
        self.messages = self.heard.__enter__()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        self.heard.__exit__(None, None, None)
        content = {
            "logged": {key: float(value) for key, value in trainer.callback_metrics.items()},
            "weights": {key: _whole(value) for key, value in pl_module.state_dict().items()},
            "epoch": trainer.current_epoch,
            "messages": self.messages,
            "snapshots": [],
        }
        if self.watched is not None:
            audit = self.watched.history.audit
            content |= {
                "snapshots": [snapshot_to_state(snapshot) for snapshot in self.watched.history.snapshots],
                "baselines": self.watched.state_dict()["baselines"],
                "probe": None if self.watched.probe is None else self.watched.probe.images,
                "run_dir": str(self.watched.run_dir),
                "audit": None if audit is None else audit.to_state(),
            }
        torch.save(content, self.folder / f"rank_{trainer.global_rank}.pt")


def _whole(value: torch.Tensor) -> torch.Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value.clone()


def in_processes(
    count: int, work: Callable[[int], Any], seconds: float = 60, *, patient: bool = True
) -> list[int | None]:
    """Do work in forked processes, which know their number; how each ended: 0, or ``None`` where it had to be killed.

    As by ``torchrun``: a Trainer in them starts no processes of its own.

    Args:
        count: how many.
        work: what each does.
        seconds: how long they may take.
        patient: whether the others may go on when the first one has ended.

    """
    port = find_free_network_port()

    def run(rank: int) -> None:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank), NODE_RANK="0")
        work(rank)
        os._exit(0)  # not waiting for threads of what was forked

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=run, args=(rank,)) for rank in range(count)]
    for process in processes:
        process.start()
    end = time.monotonic() + seconds
    for process in processes if patient else processes[:1]:
        process.join(max(0.0, end - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def fsdp2(
    count: int, *, tensor: int = 1, timeout: float = 20, whole_checkpoints: bool = False
) -> ModelParallelStrategy:
    """A strategy for a module whose ``configure_model`` shards it over so many processes, ``tensor`` within layers."""
    return ModelParallelStrategy(
        data_parallel_size=count // tensor,
        tensor_parallel_size=tensor,
        process_group_backend="gloo",
        timeout=timedelta(seconds=timeout),
        save_distributed_checkpoint=not whole_checkpoints,
    )


def fit_sharded(
    tmp_path: Path,
    *callbacks: Any,
    count: int = 2,
    tensor: int = 1,
    after: Sequence[Callback] = (),
    whole_checkpoints: bool = False,
    **kwargs: Any,
) -> list[SimpleNamespace]:
    """A fit under FSDP2, of a module whose ``configure_model`` shards it; what each process had."""
    watched = next((callback for callback in callbacks if isinstance(callback, ExpectedGradCAMCallback)), None)

    def work(rank: int) -> None:
        strategy = fsdp2(count, tensor=tensor, whole_checkpoints=whole_checkpoints)
        fit(tmp_path, *callbacks, *after, Report(tmp_path, watched), strategy=strategy, devices=count, **kwargs)

    assert in_processes(count, work) == [0] * count
    return reports(tmp_path, count)


def reports(tmp_path: Path, count: int) -> list[SimpleNamespace]:
    """What each process had."""
    found = []
    for rank in range(count):
        content = SimpleNamespace(**torch.load(tmp_path / f"rank_{rank}.pt", weights_only=True))
        content.snapshots = [snapshot_from_state(state) for state in content.snapshots]
        found.append(content)
    return found


def fit_in_two(tmp_path: Path, *callbacks: Any, after: Sequence[Callback] = (), **kwargs: Any) -> list[SimpleNamespace]:
    """A fit in two processes that gives up after 20 seconds of waiting; what each of them had."""
    if chosen().type != "cpu":
        pytest.skip("not on this device: the processes are forked, and speak over gloo")
    strategy = DDPStrategy(
        start_method="fork", process_group_backend="gloo", timeout=timedelta(seconds=20), find_unused_parameters=True
    )
    watched = next(callback for callback in callbacks if isinstance(callback, ExpectedGradCAMCallback))
    fit(tmp_path, *callbacks, *after, Report(tmp_path, watched), strategy=strategy, devices=2, **kwargs)
    return reports(tmp_path, 2)


class ThreadStrategy:
    """A strategy whose processes are threads: gathers, adds and broadcasts through a list.

    Lightning's strategies differ where it promises nothing: DDP adds in place, and stacks what it gathers (``"ddp"``);
    XLA returns another tensor, and concatenates (``"xla"``).
    """

    root_device = torch.device("cpu")

    def __init__(self, rank: int, world: int, shared: dict[str, Any], like: str) -> None:
        self.global_rank, self.world_size, self._shared, self._like = rank, world, shared, like

    def _exchange(self, value: Any) -> list[Any]:
        self._shared["values"][self.global_rank] = value
        self._shared["barrier"].wait()
        values = list(self._shared["values"])
        self._shared["barrier"].wait()
        return values

    def all_gather(self, value: torch.Tensor) -> torch.Tensor:
        values = [one.clone() for one in self._exchange(value)]
        return torch.cat([torch.atleast_1d(one) for one in values]) if self._like == "xla" else torch.stack(values)

    def broadcast(self, value: Any, src: int = 0) -> Any:
        return self._exchange(value)[src]

    def reduce(self, value: torch.Tensor, reduce_op: str) -> torch.Tensor:
        assert reduce_op == "sum"
        total = sum(self._exchange(value.clone()))
        return total if self._like == "xla" else value.copy_(total)


def in_threads(world: int, work: Callable[[ThreadStrategy], Any], like: str = "ddp") -> list[Any]:
    """``work`` in ``world`` threads at once, under a strategy ``like`` another; an exception in one is its result."""
    shared = {"barrier": threading.Barrier(world, timeout=20), "values": [None] * world}
    results: list[Any] = [None] * world

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadStrategy(rank, world, shared, like))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
