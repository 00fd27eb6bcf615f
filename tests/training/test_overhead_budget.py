"""Snapshots keep to their budget, evenly."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from egcam_lightning.training.overhead_budget import OverheadBudget


def run(schedule: OverheadBudget, occasions: int, step: float, cost: float) -> list[int]:
    taken = []
    elapsed = 0.0
    for occasion in range(occasions):
        elapsed += step
        if schedule.due(elapsed):
            taken.append(occasion)
            schedule.took(cost)
            elapsed += cost
    return taken


def test_without_a_budget_every_occasion_is_taken():
    assert run(OverheadBudget(None), 20, step=0.001, cost=10.0) == list(range(20))


def test_the_first_three_are_always_taken():
    assert run(OverheadBudget(1e-6), 3, step=0.001, cost=10.0) == [0, 1, 2]


@given(cost=st.floats(0.1, 5.0), budget=st.floats(0.02, 0.5))
def test_the_share_of_time_stays_near_the_budget_and_spacing_is_even(cost, budget):
    schedule = OverheadBudget(budget)
    taken = run(schedule, 4000, step=1.0, cost=cost)
    spent = len(taken) * cost
    assert spent / (4000 + spent) <= budget * 1.1 + 3 * cost / 4000
    tail = [b - a for a, b in zip(taken[len(taken) // 2 :], taken[len(taken) // 2 + 1 :], strict=False)]
    assert len(set(tail)) <= 2  # one interval, or its last doubling


def test_a_resumed_schedule_goes_on_as_if_never_interrupted():
    whole, first = OverheadBudget(0.05), OverheadBudget(0.05)
    expected = run(whole, 40, 1.0, 0.5)
    taken = run(first, 20, 1.0, 0.5)
    second = OverheadBudget(0.05)
    second.load_state_dict(first.state_dict(20 + 0.5 * len(taken)))
    elapsed = 0.0
    for occasion in range(20, 40):
        elapsed += 1.0
        if second.due(elapsed):
            taken.append(occasion)
            second.took(0.5)
            elapsed += 0.5
    assert taken == expected


def test_without_a_budget_all_are_taken_whatever_a_checkpoint_says():
    stretched = OverheadBudget(0.01)
    for step in range(20):
        if stretched.due(float(step)):
            stretched.took(1.0)
    assert stretched.interval > 1
    free = OverheadBudget(None)
    free.load_state_dict(stretched.state_dict(20.0))
    assert all(free.due(float(step)) for step in range(5))
