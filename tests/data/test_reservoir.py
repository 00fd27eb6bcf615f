from __future__ import annotations

import gc
import itertools
import random
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, hypergeom
from torch import Tensor

from egcam_lightning.data.reservoir import BaselineReservoir, split_sizes


def stream(length: int) -> Tensor:
    """Images (length, 1, 1, 2) that carry their own number."""
    return torch.arange(float(length)).view(-1, 1, 1, 1).expand(-1, 1, 1, 2)


def held(reservoir: BaselineReservoir) -> list[int]:
    return reservoir.images[:, 0, 0, 0].int().tolist()


def filled(size: int, seed: int, images: Tensor, batch_sizes: Iterator[int]) -> BaselineReservoir:
    reservoir = BaselineReservoir(size, seed)
    start = 0
    while start < len(images):
        stop = start + next(batch_sizes)
        reservoir.update(images[start:stop])
        start = stop
    return reservoir


def uniformity(samples: list[list[int]], length: int) -> float:
    """The p-value of "every image of the stream is held equally often", for samples without replacement."""
    counts = torch.bincount(torch.tensor(samples).flatten(), minlength=length).double()
    share = len(samples[0]) / length
    expected = len(samples) * share
    statistic = ((counts - expected) ** 2).sum() / (expected * (1 - share)) * (length - 1) / length
    return float(chi2.sf(statistic.item(), length - 1))


ALONE, SEEDS, LENGTH, SIZE = 1, 800, 40, 5
BATCHES: dict[str, Callable[[], Iterator[int]]] = {
    "one by one": lambda: itertools.repeat(ALONE),
    "even": lambda: itertools.repeat(8),
    "uneven": lambda: itertools.cycle([3, 1, 11, 0, 2]),
    "all at once": lambda: itertools.repeat(LENGTH),
}


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
@pytest.mark.parametrize("batches", BATCHES)
def test_every_image_of_the_stream_is_held_equally_often(batches: str, order: str) -> None:
    images = stream(LENGTH)
    if order == "shuffled":
        images = images[torch.randperm(LENGTH, generator=torch.Generator().manual_seed(1))]
    samples = [held(filled(SIZE, seed, images, BATCHES[batches]())) for seed in range(SEEDS)]
    assert all(len(set(sample)) == SIZE for sample in samples)
    assert uniformity(samples, LENGTH) > 0.01


def test_every_pair_of_images_is_held_equally_often() -> None:
    length, size = 8, 3
    pairs = {pair: index for index, pair in enumerate(itertools.combinations(range(length), 2))}
    counts = [0] * len(pairs)
    for seed in range(1500):
        for pair in itertools.combinations(sorted(held(filled(size, seed, stream(length), itertools.repeat(3)))), 2):
            counts[pairs[pair]] += 1
    expected = 1500 * 3 / len(pairs)
    assert chi2.sf(sum((count - expected) ** 2 / expected for count in counts), len(pairs) - 1) > 0.01


def test_the_uniformity_test_notices_a_skip_that_is_off_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    right = BaselineReservoir._skip
    monkeypatch.setattr(BaselineReservoir, "_skip", lambda self: right(self) + 1)
    samples = [held(filled(SIZE, seed, stream(LENGTH), itertools.repeat(8))) for seed in range(SEEDS)]
    assert uniformity(samples, LENGTH) < 1e-4


@pytest.mark.parametrize("later", [0, 15])
def test_merged_reservoirs_are_one_uniform_sample_and_can_go_on(later: int) -> None:
    """Streams of 24, 3 (fewer than it could hold), 0 and 13 images; then more into the merged one."""
    lengths = [24, 3, 0, 13]
    images = stream(sum(lengths) + later)
    samples = []
    for seed in range(1200):
        parts = []
        for index, part in enumerate(images[: sum(lengths)].split(lengths)):
            parts.append(BaselineReservoir(SIZE, seed=seed * 4 + index))
            parts[-1].update(part)
        merged = parts[0].merge(parts[1:])
        assert (merged.seen, len(merged)) == (40, SIZE)
        for image in images[sum(lengths) :]:
            merged.update(image[None])
        samples.append(held(merged))
    assert uniformity(samples, len(images)) > 0.01
    # The same for one group, those that came after the merge: a wrong threshold to enter moves them all one way.
    late = sum(image >= sum(lengths) for sample in samples for image in sample)
    share = later / len(images)
    variance = SIZE * share * (1 - share) * (len(images) - SIZE) / (len(images) - 1)
    assert abs(late - len(samples) * SIZE * share) <= 2.6 * (len(samples) * variance) ** 0.5


def test_merging_reads_only_and_moves_no_part() -> None:
    parts = [filled(4, seed, stream(20) + 100 * seed, itertools.repeat(6)) for seed in range(2)]
    before = [part.state_dict() for part in parts]
    assert held(parts[0].merge(parts[1:])) == held(parts[0].merge(parts[1:]))
    for part, state in zip(parts, before, strict=True):
        assert_same_state(part.state_dict(), state)


def test_a_merge_of_too_few_images_holds_them_all() -> None:
    parts = [filled(9, seed, stream(3) + 10 * seed, itertools.repeat(2)) for seed in range(2)]
    merged = parts[0].merge(parts[1:])
    assert sorted(held(merged)) == [0, 1, 2, 10, 11, 12]
    merged.update(stream(2) + 20)
    assert sorted(held(merged)) == [0, 1, 2, 10, 11, 12, 20, 21]
    assert BaselineReservoir(3).merge([BaselineReservoir(3)]).seen == 0


def test_split_sizes_are_hypergeometric() -> None:
    seen, size, rounds = [7, 0, 12, 2], 6, 4000
    generator = torch.Generator().manual_seed(0)
    splits = torch.tensor([split_sizes(seen, size, generator) for _ in range(rounds)])
    assert (splits.sum(1) == size).all()
    assert (splits <= torch.tensor(seen)).all()
    for column, count in zip(splits.T, seen, strict=True):
        expected = torch.tensor([hypergeom.pmf(k, sum(seen), count, size) for k in range(size + 1)]) * rounds
        observed = torch.bincount(column, minlength=size + 1).double()
        likely = expected > 5
        assert observed[expected == 0].sum() == 0
        statistic = ((observed - expected)[likely] ** 2 / expected[likely]).sum()
        assert chi2.sf(statistic.item(), max(int(likely.sum()) - 1, 1)) > 0.01


def test_split_sizes_are_the_same_for_the_same_generator_and_bounded() -> None:
    seen = [10**12, 3, 10**9]
    first, second = (split_sizes(seen, 32, torch.Generator().manual_seed(5)) for _ in range(2))
    assert first == second
    assert sum(first) == 32
    assert split_sizes([2, 1], 32, torch.Generator()) == [2, 1]
    assert split_sizes([], 32, torch.Generator()) == []
    with pytest.raises(ValueError, match="negative"):
        split_sizes([3, -1], 2, torch.Generator())


@given(st.lists(st.integers(0, 17), min_size=1, max_size=20), st.integers(1, 6), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_the_sample_does_not_depend_on_how_the_stream_is_cut(cuts: list[int], size: int, seed: int) -> None:
    images = stream(sum(cuts))
    whole, cut = BaselineReservoir(size, seed), BaselineReservoir(size, seed)
    whole.update(images)
    for batch in images.split(cuts):
        cut.update(batch)
    assert_same_state(whole.state_dict(), cut.state_dict())


def assert_same_state(first: dict[str, object], second: dict[str, object]) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        other = second[key]
        assert torch.equal(value, other) if isinstance(value, Tensor) else value == other, key


class Watched(Tensor):
    """Counts every operation but the look at its shape and type."""

    reads = 0

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., object], types: object, args: tuple[object, ...] = (), kwargs: object = None
    ) -> object:
        if func not in (Tensor.shape.__get__, Tensor.dtype.__get__):
            cls.reads += 1
        return super().__torch_function__(func, types, args, kwargs or {})


def test_batches_that_nothing_enters_from_are_never_read() -> None:
    reservoir = BaselineReservoir(4, seed=0)
    batch = torch.rand(10, 1, 2, 2).as_subclass(Watched)
    read = []
    for _ in range(300):
        before, images = Watched.reads, reservoir._storage.clone() if reservoir._storage is not None else None
        reservoir.update(batch)
        read.append(Watched.reads > before)
        if not read[-1]:
            assert torch.equal(reservoir._storage, images)
    assert read[0]
    # 4 (1 + log(3000 / 4)) = 30 images are expected to enter, most of them early on
    assert sum(read) < 40
    assert sum(read[100:]) < 15


def test_memory_is_constant_and_no_batch_is_kept_alive() -> None:
    reservoir, alive, places = BaselineReservoir(4), [], set()
    for _ in range(50):
        batch = torch.rand(7, 3, 5, 6)
        alive.append(weakref.ref(batch))
        reservoir.update(batch)
        places.add(reservoir._storage.data_ptr())
        del batch
    gc.collect()
    assert len(places) == 1
    assert reservoir._storage.untyped_storage().nbytes() == 4 * 3 * 5 * 6 * 2
    assert not any(reference() is not None for reference in alive)


def test_global_generators_are_not_moved() -> None:
    before = torch.get_rng_state(), random.getstate()
    parts = [filled(3, seed, stream(30), itertools.repeat(4)) for seed in range(2)]
    parts[0].merge(parts[1:])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


@pytest.mark.parametrize("interrupted_after", [0, 2, 4, 11, 200])
def test_a_resumed_reservoir_goes_on_as_if_never_interrupted(interrupted_after: int, tmp_path: Path) -> None:
    images = torch.randn(400, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    whole, first, second = (BaselineReservoir(5, seed) for seed in (1, 1, 99))
    whole.update(images)
    first.update(images[:interrupted_after])
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    if interrupted_after:
        assert torch.equal(first.images, second.images), "values were rounded before their first use"
    for batch in images[interrupted_after:].split(7):
        second.update(batch)
    assert_same_state(whole.state_dict(), second.state_dict())


def test_a_saved_state_does_not_follow_later_updates() -> None:
    reservoir = filled(3, 0, stream(3), itertools.repeat(3))
    state = reservoir.state_dict()
    reservoir.update(stream(100) + 50)
    assert state["images"][:, 0, 0, 0].tolist() == [0, 1, 2]
    assert state["generator"].dtype == torch.uint8


@pytest.mark.parametrize(
    ("given_as", "dtype", "stored", "shown"),
    [
        (torch.uint8, torch.float16, torch.uint8, torch.uint8),
        (torch.float32, torch.float16, torch.float16, torch.float32),
        (torch.float32, torch.float32, torch.float32, torch.float32),
        (torch.float64, torch.float32, torch.float32, torch.float32),
        (torch.bfloat16, torch.float16, torch.float16, torch.float32),
        (torch.float16, torch.float16, torch.float16, torch.float32),
    ],
)
def test_images_are_rounded_to_the_storage_type(
    given_as: torch.dtype, dtype: torch.dtype, stored: torch.dtype, shown: torch.dtype
) -> None:
    images = (torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 255).to(given_as)
    reservoir = BaselineReservoir(2, dtype=dtype)
    reservoir.update(images)
    assert reservoir._storage.dtype == stored
    assert reservoir.images.dtype == shown
    assert torch.equal(reservoir.images, images.to(stored).to(shown))


def test_values_beyond_half_precision_are_cut_off_and_kept_in_float32() -> None:
    images = torch.tensor([[[[1e6, -1e6, 0.1]]]])
    half, full = BaselineReservoir(1), BaselineReservoir(1, dtype=torch.float32)
    half.update(images)
    full.update(images)
    assert half.images.flatten()[:2].tolist() == [65504, -65504]
    assert torch.equal(full.images, images)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_images_of_another_size_are_interpolated_and_said_once(dtype: torch.dtype) -> None:
    reservoir = BaselineReservoir(3)
    reservoir.update(torch.zeros(1, 3, 4, 6, dtype=dtype))
    with pytest.warns(UserWarning, match=r"\(8, 8\).*\(4, 6\)"):
        reservoir.update(torch.full((1, 3, 8, 8), 7, dtype=dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reservoir.update(torch.full((1, 3, 2, 2), 9, dtype=dtype))
    assert reservoir.images.shape == (3, 3, 4, 6)
    assert reservoir.images.amax((1, 2, 3)).tolist() == reservoir.images.amin((1, 2, 3)).tolist() == [0, 7, 9]


def test_volumes_are_kept_too() -> None:
    reservoir = BaselineReservoir(2)
    reservoir.update(torch.ones(1, 1, 2, 3, 4))
    with pytest.warns(UserWarning, match="several sizes"):
        reservoir.update(torch.ones(1, 1, 4, 3, 4))
    assert torch.equal(reservoir.images, torch.ones(2, 1, 2, 3, 4))


def test_images_of_inference_mode_and_of_a_graph_are_stored_as_plain_values() -> None:
    reservoir = BaselineReservoir(2)
    with torch.inference_mode():
        reservoir.update(torch.ones(2, 1, 2, 2))
    reservoir.update(torch.zeros(200, 1, 2, 2, requires_grad=True) * 2)
    assert not reservoir.images.requires_grad
    assert not reservoir.images.is_inference()
    assert reservoir.images.sum() == 0


def test_chosen_rows_are_distinct_and_as_stored() -> None:
    reservoir = filled(6, 0, stream(6), itertools.repeat(6))
    rows = reservoir.choose(4, torch.Generator().manual_seed(1))
    assert rows.dtype == torch.float16
    assert len(set(rows[:, 0, 0, 0].tolist())) == 4
    assert reservoir.choose(0, torch.Generator()).shape == (0, 1, 1, 2)
    with pytest.raises(ValueError, match="holds 6"):
        reservoir.choose(7, torch.Generator())


def test_bad_input_says_what_was_seen_and_what_to_write() -> None:
    with pytest.raises(ValueError, match="size is 0"):
        BaselineReservoir(0)
    with pytest.raises(ValueError, match=r"torch\.float16 or"):
        BaselineReservoir(dtype=torch.bfloat16)
    reservoir = BaselineReservoir(2)
    with pytest.raises(ValueError, match="empty"):
        reservoir.images  # noqa: B018
    with pytest.raises(ValueError, match=r"\(3, 8, 8\)"):
        reservoir.update(torch.zeros(3, 8, 8))
    with pytest.raises(TypeError, match=r"int64.*images\.float"):
        reservoir.update(torch.zeros(1, 3, 8, 8, dtype=torch.int64))
    reservoir.update(torch.zeros(100, 3, 8, 8))
    with pytest.raises(ValueError, match="3 channels"):
        reservoir.update(torch.zeros(1, 1, 8, 8))
    with pytest.raises(TypeError, match="uint8"):
        reservoir.update(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    assert reservoir.seen == 100, "a refused batch does not count"
    other = BaselineReservoir(3)
    with pytest.raises(ValueError, match="one size"):
        reservoir.merge([other])
    with pytest.raises(ValueError, match="size=2"):
        other.load_state_dict(reservoir.state_dict())
    with pytest.raises(ValueError, match="missing"):
        other.load_state_dict({"seen": 3})
    with pytest.raises(ValueError, match="damaged"):
        reservoir.load_state_dict({**reservoir.state_dict(), "images": None})


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:.*several sizes")
def test_nothing_waits_for_the_gpu_and_rows_stay_there() -> None:
    images = torch.rand(64, 3, 32, 32, device="cuda")
    small = images[:, :, ::2, ::2].contiguous()
    reservoir, twin = BaselineReservoir(8), BaselineReservoir(8)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(50):
            reservoir.update(images)
            reservoir.update(small)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert reservoir.images.is_cuda
    twin.load_state_dict(reservoir.state_dict())
    assert not twin.images.is_cuda
    for _ in range(50):
        reservoir.update(images)
        twin.update(images)
    assert twin.images.is_cuda
    assert torch.equal(reservoir.images, twin.images)
