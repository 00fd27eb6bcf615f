"""Samples from the Trainer's own loaders, read without moving a loader, a sampler or a data set.

A data set may open its file at the first sample, so that each worker has a handle of its own, or draw from a generator
of its own. One that is read in the training process shares the handle with every worker that is forked later, and draws
other numbers afterwards. So samples are read where the loader reads them itself, in a worker process; and where it has
no workers, from a copy.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
)

_WORKER_SECONDS = 300.0  # a worker that hangs must not hang the training

_COPIED_BYTES = 2**30  # the largest data set that is copied

_SHARED_BYTES = 2**24  # arrays above this are shared with the copy, which cannot write to them

_LONGEST_SAMPLER = 10**6  # some never end


def first_loader(loaders: Any) -> Any:
    """The first loader of what a Trainer holds: a loader, a ``CombinedLoader``, or loaders in lists and mappings."""
    loaders = getattr(loaders, "flattened", loaders)
    if isinstance(loaders, dict):
        loaders = list(loaders.values())
    if isinstance(loaders, (list, tuple)):
        return first_loader(loaders[0]) if loaders else None
    return loaders


class CannotRead(ValueError):
    """Samples that cannot be had as one batch.

    Args:
        message: why.
        remedy: what to write instead.

    """

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


class SampleReader:
    """Reads samples of loaders by index.

    The loader itself is not iterated: that would draw from the global generator, and reset persistent workers.

    Args:
        trainer: the Trainer whose loaders are read; it and its module are no part of a data set that holds them.
        pl_module: its module.

    """

    def __init__(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._kept = (trainer, pl_module)

    def evenly_spaced(self, loader: Any, count: int) -> tuple[Any, list[Any]] | None:
        """A batch of samples at evenly spaced places of what a loader delivers.

        Args:
            loader: the loader, or a list or mapping of loaders whose batches make one batch together.
            count: how many samples are asked for; fewer are taken where there are fewer.

        Returns:
            The batch and the indices of its samples; ``None`` where there are none to be had by index.

        Raises:
            CannotRead: where the samples cannot be read so, or do not fit together.

        """
        if isinstance(loader, (dict, list, tuple)):
            return self._combined(loader, count)
        indices = self.delivered(loader)
        count = min(count, len(indices or ()))
        if indices is None or count == 0:
            return None
        chosen = [indices[i * len(indices) // count] for i in range(count)]
        (batch,) = self.read(loader, [chosen])
        return batch, chosen

    def delivered(self, loader: Any) -> Sequence[Any] | None:
        """The indices of the samples that a loader delivers, in all processes and without repetition.

        Of a loader that shuffles all of its samples they are in the order of the data set.

        Returns:
            ``None`` where its samples have no index.

        Raises:
            CannotRead: where its sampler cannot be asked without moving it.

        """
        size = num_samples(loader)
        if size is None:
            return None
        order = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
        if type(order) is BatchSampler:
            order = order.sampler
        if isinstance(order, DistributedSamplerWrapper):  # Lightning's, around the sampler of all processes
            order = order.dataset._sampler  # type: ignore[attr-defined]
        if type(order) in (SequentialSampler, RandomSampler, DistributedSampler):
            return range(size)
        if type(order) is SubsetRandomSampler:
            found: Any = order.indices
        else:
            found = islice(self._copy(order, "Pass a batch as `probe`.", loader.dataset), _LONGEST_SAMPLER)
        # A sampler of batches gives lists of indices.
        flat = (i for entry in found for i in (entry if _is_several(entry) else (entry,)))
        return list(dict.fromkeys(int(i) if isinstance(i, (Tensor, np.integer)) else i for i in flat))

    def read(self, loader: Any, batches: Sequence[Sequence[Any]]) -> Iterator[Any]:
        """Batches of a loader that hold the samples at given indices; each is read when it is asked for.

        Args:
            loader: the loader.
            batches: the indices of each batch; where the samples are batches already, one each.

        Raises:
            CannotRead: where they cannot be read without touching the data set, or do not fit together.

        """
        collate = _Collate(loader.collate_fn)
        arguments: dict[str, Any] = {"generator": torch.Generator().manual_seed(0)}
        if batches_itself(loader):
            in_bulk = isinstance(loader.sampler, BatchSampler)  # which asks the data set for many samples at once
            asked = [list(indices) if in_bulk else indices[0] for indices in batches]
            arguments |= {"batch_size": None, "sampler": asked}
        else:
            arguments |= {"batch_sampler": [list(indices) for indices in batches]}
        if loader.num_workers > 0:
            dataset = loader.dataset
            arguments |= {
                "num_workers": 1,
                "prefetch_factor": 1,
                "timeout": loader.timeout or _WORKER_SECONDS,
                "worker_init_fn": loader.worker_init_fn,
                "multiprocessing_context": loader.multiprocessing_context,
            }
        else:
            remedy = "Give its loader `num_workers=1` or more, or pass a batch as `probe`."
            dataset, collate = self._copy((loader.dataset, collate), remedy)
        for indices, batch in zip(batches, DataLoader(dataset, collate_fn=collate, **arguments), strict=True):
            if isinstance(batch, _NoBatch):
                raise CannotRead(
                    f"The samples {list(indices)} of {type(loader.dataset).__name__} cannot be put into one batch "
                    f"({batch.cause}).",
                    f"Pass indices of images of one size as `probe` to choose others, such as probe=[{indices[0]}], or "
                    "a batch.",
                )
            yield batch

    def _combined(self, loaders: Any, count: int) -> tuple[Any, list[Any]] | None:
        """A batch of a ``CombinedLoader``; its indices are those of the part that has the most."""
        keys = list(loaders) if isinstance(loaders, dict) else range(len(loaders))
        found = [self.evenly_spaced(loaders[key], count) for key in keys]
        parts = [part for part in found if part is not None]
        if not parts or len(parts) < len(found):
            return None
        batches = [batch for batch, _ in parts]
        batch = dict(zip(keys, batches, strict=True)) if isinstance(loaders, dict) else type(loaders)(batches)
        return batch, max((indices for _, indices in parts), key=len)

    def _copy(self, value: Any, remedy: str, *kept: Any) -> Any:
        """A copy of what reading would move, but for what is ``kept`` and what cannot be moved by reading."""
        memo: dict[int, Any] = {id(part): part for part in (*self._kept, *kept)}
        size = _share_arrays(value, memo)
        kind = type(value[0] if isinstance(value, tuple) else value).__name__
        if size > _COPIED_BYTES:
            raise CannotRead(f"{kind} holds more than {_COPIED_BYTES >> 30} GiB, too much to be copied.", remedy)
        try:
            return copy.deepcopy(value, memo)
        except Exception as error:
            raise CannotRead(f"{kind} cannot be copied ({type(error).__name__}: {error}).", remedy) from error


class _NoBatch:
    """Stands for a batch that could not be made, on its way out of a worker."""

    def __init__(self, error: Exception) -> None:
        self.cause = f"{type(error).__name__}: {error}"


class _Collate:
    """A loader's ``collate_fn``, whose failures are told apart from those of reading."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, samples: Any) -> Any:
        try:
            return self._function(samples)
        except Exception as error:
            return _NoBatch(error)


def _is_several(entry: Any) -> bool:
    """Whether what a sampler gives is a batch of indices."""
    return isinstance(entry, (list, tuple)) or (isinstance(entry, (Tensor, np.ndarray)) and entry.ndim > 0)


def num_samples(loader: Any) -> int | None:
    """How many samples a loader's data set has, or ``None`` where they cannot be had by index."""
    dataset = getattr(loader, "dataset", None)
    if (
        not isinstance(loader, DataLoader)
        or isinstance(dataset, IterableDataset)
        or not hasattr(dataset, "__getitem__")
    ):
        return None
    try:
        return len(dataset)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None


def batches_itself(loader: Any) -> bool:
    """Whether the samples of a loader's data set are batches already."""
    return isinstance(loader, DataLoader) and loader.batch_size is None and loader.batch_sampler is None


def _share_arrays(value: Any, memo: dict[int, Any]) -> int:
    """Have a deep copy share what reading cannot move: large arrays, and tensors of a plain ``TensorDataset``.

    Arrays are shared by a view that cannot be written to: a data set that keeps samples in one fails to, and is not
    read so.

    Args:
        value: what is to be copied.
        memo: of :func:`copy.deepcopy`, filled here.

    Returns:
        The bytes of the tensors and arrays that are left to be copied, as far as they lie in plain containers and
        attributes.

    """
    size, waiting, seen = 0, [value], set(memo)
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if type(part) is TensorDataset:
            memo[id(part)] = part
        elif isinstance(part, np.ndarray) and part.nbytes > _SHARED_BYTES and part.dtype != object:
            view = part.view()
            view.flags.writeable = False
            memo[id(part)] = view
        elif isinstance(part, (Tensor, np.ndarray, bytes, bytearray)):
            size += len(part) if isinstance(part, (bytes, bytearray)) else part.nbytes
        elif isinstance(part, Mapping):
            waiting += part.values()
        elif isinstance(part, (list, tuple, set, frozenset)):
            waiting += [item for item in part if not isinstance(item, (str, int, float))]
        elif isinstance(part, types.MethodType):
            waiting.append(part.__self__)
        elif hasattr(part, "__dict__") and not isinstance(part, (type, types.ModuleType)):
            waiting += vars(part).values()
    return size
