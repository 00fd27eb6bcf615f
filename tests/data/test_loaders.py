"""Samples are read as a loader would deliver them, and neither it nor its data set has moved afterwards."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch import Trainer
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from egcam_lightning.data import loaders
from egcam_lightning.data.loaders import CannotRead, SampleReader
from tests.support.fits import Net

SIZE = 12


class Numbers(Dataset):
    """Samples are their own indices; what reading moves is counted."""

    def __init__(self, **held):
        self.reads = []
        self.__dict__.update(held)

    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        self.reads.append(index)
        return torch.tensor(index)


class Batches(Numbers):
    """Whose samples are batches already."""

    def __getitem__(self, index):
        return torch.tensor([index, index])


class EvenBatches(BatchSampler):
    """Batches of the even indices, counted as they are made."""

    def __init__(self):
        self.made = 0

    def __iter__(self):
        for start in (0, 6):
            self.made += 1
            yield [start, start + 2, start + 4]

    def __len__(self):
        return 2


class Forever(SequentialSampler):
    def __iter__(self):
        while True:
            yield 5
            yield 7


@pytest.fixture
def reader():
    return SampleReader(Trainer(logger=False, enable_checkpointing=False, accelerator="cpu"), Net())


DATA = Numbers()
DISTRIBUTED = {"num_replicas": 2, "rank": 1}


@pytest.mark.parametrize(
    ("arguments", "delivered"),
    [
        ({"batch_size": 4}, list(range(SIZE))),
        ({"batch_size": 4, "shuffle": True}, list(range(SIZE))),
        ({"sampler": SubsetRandomSampler([3, 8, 1])}, [3, 8, 1]),
        ({"sampler": SubsetRandomSampler(torch.tensor([3, 8, 1]))}, [3, 8, 1]),
        ({"sampler": [4, 2, 4]}, [4, 2]),
        ({"sampler": WeightedRandomSampler([0.0] * 11 + [1.0], 20)}, [11]),
        ({"sampler": Forever(DATA)}, [5, 7]),
        ({"batch_sampler": EvenBatches()}, [0, 2, 4, 6, 8, 10]),
        ({"batch_sampler": BatchSampler(SubsetRandomSampler([7]), 2, False)}, [7]),
        ({"sampler": DistributedSampler(DATA, **DISTRIBUTED)}, list(range(SIZE))),
        ({"sampler": DistributedSamplerWrapper(SubsetRandomSampler([3, 8, 1]), **DISTRIBUTED)}, [3, 8, 1]),
        ({"sampler": DistributedSamplerWrapper(RandomSampler(DATA), **DISTRIBUTED)}, list(range(SIZE))),
    ],
    ids=[
        "in order", "shuffled", "subset", "subset by a tensor", "a list", "weighted", "endless", "batches",
        "default batches of a subset", "distributed", "Lightning's, of a subset", "Lightning's",
    ],
)  # fmt: skip
def test_only_what_the_loader_delivers_is_read(reader, arguments, delivered, monkeypatch):
    monkeypatch.setattr(loaders, "_LONGEST_SAMPLER", 1000)
    loader = DataLoader(DATA, **arguments)
    before = torch.get_rng_state()
    with torch.random.fork_rng():
        assert list(reader.delivered(loader)) == delivered
        batch, indices = reader.evenly_spaced(loader, 2)
    assert torch.equal(before, torch.get_rng_state())
    assert indices == [delivered[0], delivered[len(delivered) // 2]][: len(delivered)]
    assert batch.tolist() == indices
    assert getattr(loader.batch_sampler, "made", 0) == 0
    assert DATA.reads == []


def test_what_has_no_index_is_not_read(reader):
    class Stream(IterableDataset):
        def __iter__(self):
            raise AssertionError

    assert reader.delivered(DataLoader(Stream())) is None
    assert reader.evenly_spaced(DataLoader(Stream()), 4) is None
    assert reader.evenly_spaced(object(), 4) is None
    assert reader.evenly_spaced(None, 4) is None
    assert reader.evenly_spaced(DataLoader(Subset(DATA, [])), 4) is None


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_data_set_that_training_reads_is_not_touched(reader, workers):
    data = Numbers(generator=np.random.default_rng(0), owner=os.getpid())
    loader = DataLoader(data, 4, num_workers=workers, persistent_workers=workers > 0)
    state, threads = data.generator.bit_generator.state, set(threading.enumerate())
    assert [batch.tolist() for batch in reader.read(loader, [[0, 3], [5]])] == [[0, 3], [5]]
    assert data.reads == []
    assert data.generator.bit_generator.state == state
    for thread in set(threading.enumerate()) - threads:  # what fed its worker has ended with it
        thread.join(10)
        assert not thread.is_alive()
    assert loader._iterator is None, "the loader has no workers yet"


def test_samples_that_are_batches_are_read_one_by_one(reader):
    loader = DataLoader(Batches(), batch_size=None)
    assert [batch.tolist() for batch in reader.read(loader, [[2], [4]])] == [[2, 2], [4, 4]]


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_that_do_not_fit_together_are_told_of(reader, workers):
    def refuse(samples):
        raise KeyError("sizes")

    loader = DataLoader(Numbers(), 4, collate_fn=refuse, num_workers=workers)
    with pytest.raises(CannotRead, match=r"^The samples \[1, 2\] of Numbers .* \(KeyError: 'sizes'\)\.$"):
        list(reader.read(loader, [[1, 2]]))


def test_a_data_set_that_cannot_be_copied_is_read_by_a_worker_or_not_at_all(reader):
    data = Numbers(lock=threading.Lock())
    with pytest.raises(CannotRead, match=r"^Numbers cannot be copied \(TypeError") as caught:
        list(reader.read(DataLoader(data), [[1, 2]]))
    assert "`num_workers=1`" in caught.value.remedy
    assert [batch.tolist() for batch in reader.read(DataLoader(data, num_workers=2), [[1, 2]])] == [[1, 2]]


@pytest.mark.parametrize("held", [torch.zeros(300), [torch.zeros(150), {"more": np.zeros(150)}], bytes(1200)])
def test_a_data_set_that_is_too_large_to_be_copied_is_not(reader, monkeypatch, held):
    monkeypatch.setattr(loaders, "_COPIED_BYTES", 1000)
    with pytest.raises(CannotRead, match="too much to be copied"):
        list(reader.read(DataLoader(Numbers(held=held)), [[1]]))


def test_large_arrays_and_plain_tensor_data_sets_are_shared_with_the_copy(reader, monkeypatch):
    monkeypatch.setattr(loaders, "_COPIED_BYTES", 1000)
    monkeypatch.setattr(loaders, "_SHARED_BYTES", 1000)

    class Rows(Numbers):
        def __getitem__(self, index):
            return self.array[index].copy(), self.tensors[index][0]

    data = Rows(array=np.arange(SIZE * 100.0).reshape(SIZE, 100), tensors=TensorDataset(torch.rand(SIZE, 100)))
    ((rows, tensors),) = reader.read(DataLoader(Subset(data, [3, 5])), [[0, 1]])
    assert torch.equal(rows, torch.from_numpy(data.array[[3, 5]]))
    assert torch.equal(tensors, data.tensors.tensors[0][[3, 5]])

    class Caches(Rows):
        def __getitem__(self, index):
            self.array[index] += 1
            return torch.tensor(index)

    data = Caches(array=np.zeros((SIZE, 100)), tensors=None)
    with pytest.raises(ValueError, match="read-only"):
        list(reader.read(DataLoader(data), [[0, 1]]))
    assert not data.array.any()


def test_a_data_set_that_knows_the_trainer_is_copied_without_it(reader):
    class Knows(Numbers):
        def __getitem__(self, index):
            assert self.trainer is reader._kept[0]
            assert self.collate.__self__ is self
            return torch.tensor(index)

        def collate(self, samples):
            return torch.stack(samples)

    data = Knows(trainer=reader._kept[0])
    data.collate = data.collate
    assert next(reader.read(DataLoader(data, collate_fn=data.collate), [[1, 2]])).tolist() == [1, 2]


class Bulk(Numbers):
    """Asked for many samples at once."""

    def __getitem__(self, index):
        return torch.tensor(index)


def test_a_data_set_that_is_asked_for_many_samples_at_once_is_asked_so(reader):
    data = Bulk()
    loader = DataLoader(data, batch_size=None, sampler=BatchSampler(SequentialSampler(data), 4, False))
    batch, indices = reader.evenly_spaced(loader, 3)
    assert batch.tolist() == indices == [0, 4, 8]


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_batches_of_indices_may_be_arrays(reader, kind):
    assert list(reader.delivered(DataLoader(DATA, batch_sampler=[kind([3, 1]), kind([2])]))) == [3, 1, 2]
