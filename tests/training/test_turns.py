"""Processes take turns: whatever each does by itself, all gather the same units of weights, and none waits in vain."""

from __future__ import annotations

import random
import threading
from contextlib import contextmanager
from functools import partial

import pytest

from egcam_lightning.explain.split_model import attempt
from egcam_lightning.training.process_group import ProcessGroup
from egcam_lightning.training.turns import FailedElsewhere, Turns
from tests.support.parallel import in_threads

UNITS = 4


class Weights:
    """Units that processes gather together: a gathering ends when all have come, and fails unless all want the same."""

    def __init__(self, world):
        self.barrier, self.wanted, self.lock = threading.Barrier(world, timeout=10), {}, threading.Lock()

    def of(self, rank):
        return Shard(self, rank)


class Shard:
    """What one process has of them."""

    def __init__(self, whole, rank):
        self.whole, self.rank, self.log, self.take, self.fails = whole, rank, [], None, 0

    @contextmanager
    def gathered_in_turn(self, take, collective):
        self.take = take
        yield

    def gather(self, unit):
        """For others."""
        if self.fails:
            self.fails -= 1
            raise MemoryError("no room for another's unit")
        self._together(unit)

    def use(self, unit):
        """In a pass of one's own."""
        self.take(unit)
        self._together(unit)

    def _together(self, unit):
        self.whole.wanted[self.rank] = unit
        self.whole.barrier.wait()
        assert set(self.whole.wanted.values()) == {unit}
        self.whole.barrier.wait()
        self.log.append(unit)


def run(world, work):
    """What ``work(run_or_raise_everywhere, shard)`` gives in each process, and the units that it gathered, in order."""
    weights = Weights(world)
    logs = [None] * world

    def one(strategy):
        group, shard = ProcessGroup(strategy), weights.of(strategy.global_rank)
        logs[shard.rank] = shard.log
        turns = Turns(group.all_gather, group.broadcast, strategy.root_device, shard, lambda call: call())
        shard.begin_pass = turns.begin_pass
        return work(turns.run, shard)

    return in_threads(world, one), logs


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_processes_with_other_passes_in_another_order_all_finish(world, seed):
    """Programs drawn at random, of another length in each process; one may have nothing to do."""
    chance = random.Random(seed)
    programs = [[chance.randrange(UNITS) for _ in range(chance.randrange(9))] for _ in range(world)]

    def work(everywhere, shard):
        used = []
        for part in (programs[shard.rank][:4], programs[shard.rank][4:]):
            everywhere(lambda part=part: [used.append(unit) for unit in part if shard.use(unit) is None])
        return used

    found, logs = run(world, work)
    assert found == programs
    assert all(log == logs[0] for log in logs)
    assert len(logs[0]) <= sum(map(len, programs))


def test_processes_that_do_the_same_gather_each_unit_once():
    _, logs = run(3, lambda everywhere, shard: everywhere(lambda: [shard.use(unit) for unit in range(UNITS)]))
    assert logs == [list(range(UNITS))] * 3


def test_who_begins_a_pass_waits_for_those_in_one_and_goes_on_in_step_with_them():
    """A pass of one ends half way, while the other completes its own; what follows they do at once again."""
    ways = [range(UNITS)] * 4, [range(UNITS), range(2), *[range(UNITS)] * 3]

    def work(everywhere, shard):
        def passes():
            for way in ways[shard.rank]:
                shard.begin_pass()
                for unit in way:
                    shard.use(unit)

        everywhere(passes)

    _, logs = run(2, work)
    assert logs[0] == logs[1]
    assert len(logs[0]) == 5 * UNITS  # a pass more, not each of them twice


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("at", [0, 2, 5])
def test_a_failure_ends_the_work_everywhere_wherever_the_others_are(failing, at):
    def work(everywhere, shard):
        def passes():
            for unit in (0, 1, 2, 3, 0, 1):
                if shard.rank == failing and len(shard.log) == at:
                    raise KeyError("lost")
                shard.use(unit)
            if shard.rank == failing:
                raise KeyError("lost")

        with pytest.raises(KeyError if shard.rank == failing else FailedElsewhere, match="lost"):
            everywhere(passes)
        return everywhere(lambda: shard.use(3))  # and the next work is done as if nothing had been

    found, logs = run(3, work)
    assert found == [None] * 3
    assert all(log == logs[0] and log[-1] == 3 for log in logs)


def test_a_failure_that_is_swallowed_on_the_way_still_ends_the_work():
    """As a trial of a layer does, to which any error means that the model refuses it."""

    def work(everywhere, shard):
        def passes():
            if shard.rank == 0:
                raise KeyError("lost")
            return [attempt(partial(shard.use, unit)) for unit in range(UNITS)]

        with pytest.raises((KeyError, FailedElsewhere), match="lost"):
            everywhere(passes)
        return "on"

    found, logs = run(2, work)
    assert found == ["on", "on"]
    assert logs == [[], []]


@pytest.mark.parametrize("inside", [True, False])
def test_work_within_work_fails_alike_everywhere(inside):
    def work(everywhere, shard):
        def inner():
            if shard.rank == 1 and inside:
                raise KeyError("lost")
            shard.use(0)
            shard.use(1)

        def outer():
            shard.use(2)
            if shard.rank == 1 and not inside:
                raise KeyError("lost")
            everywhere(inner)

        with pytest.raises((KeyError, FailedElsewhere), match="lost"):
            everywhere(outer)
        everywhere(lambda: shard.use(3))
        return "on"

    found, logs = run(3, work)
    assert found == ["on"] * 3
    assert all(log == logs[0] for log in logs)


def test_memory_that_runs_out_while_another_is_served_is_tried_again_before_the_next_step():
    """As a chunk does, halved where memory runs out: the others still wait for the unit."""

    def work(everywhere, shard):
        def passes():
            if shard.rank == 0:
                return [shard.use(0), shard.use(1)]
            shard.fails = 1
            with pytest.raises(MemoryError):
                shard.use(3)
            return shard.use(3)

        everywhere(passes)
        return shard.fails

    found, logs = run(2, work)
    assert found == [0, 0]
    assert logs == [[0, 1, 3]] * 2


def test_memory_that_runs_out_behind_ones_own_work_ends_it_everywhere():
    def work(everywhere, shard):
        shard.fails = shard.rank
        with pytest.raises((MemoryError, FailedElsewhere), match="no room"):
            everywhere(lambda: shard.rank or [shard.use(0), shard.use(1)])
        return everywhere(lambda: shard.use(2))

    found, logs = run(2, work)
    assert found == [None, None]
    assert logs == [[0, 2]] * 2
