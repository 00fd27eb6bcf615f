"""Recurrence sees a map that comes back under another class, wherever it is."""

from __future__ import annotations

import pytest
import torch

from egcam_lightning.metrics import ExplanationConsensus, ExplanationRecurrence
from egcam_lightning.metrics.functional import consensus, recurrence


def spots(places, size=6):
    maps = torch.zeros(len(places), size, size)
    for index, (row, column) in enumerate(places):
        maps[index, row, column] = 1.0
    return maps


def test_it_is_the_mean_best_cosine_with_another_class():
    maps = torch.randn(7, 5, 5, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0, 0, 1, 1, 2, 2, 2])
    positive = maps.clamp(min=0).flatten(1)
    best = []
    for i in range(7):
        others = [j for j in range(7) if target[j] != target[i]]
        best.append(max(torch.cosine_similarity(positive[i], positive[j], dim=0) for j in others))
    torch.testing.assert_close(recurrence(maps, target), torch.stack(best).mean())


def test_a_tag_at_one_of_several_places_recurs_where_consensus_is_low():
    corners = [(0, 0), (0, 5), (5, 0), (5, 5)] * 4
    target = torch.arange(16) // 2  # corner and class are unrelated
    assert recurrence(spots(corners), target) == 1
    assert consensus(spots(corners), target) < 0.3


def test_maps_of_their_own_do_not_recur():
    assert recurrence(spots([(0, 0), (1, 1), (2, 2)]), torch.tensor([0, 1, 2])) == 0


def test_one_class_has_none_and_empty_maps_are_left_out():
    assert recurrence(spots([(0, 0), (0, 0)]), torch.tensor([1, 1])) is None
    maps = torch.cat([spots([(0, 0), (0, 0)]), torch.zeros(1, 6, 6), torch.full((1, 6, 6), torch.nan)])
    assert recurrence(maps, torch.tensor([0, 1, 2, 3])) == 1


@pytest.mark.parametrize("kind", [ExplanationConsensus, ExplanationRecurrence])
def test_split_batches_give_the_value_of_the_whole(kind):
    maps = torch.randn(9, 5, 5, generator=torch.Generator().manual_seed(1))
    target = torch.arange(9) % 3
    whole, split = kind(), kind()
    whole.update(maps, target)
    for part in range(0, 9, 2):
        split.update(maps[part : part + 2], target[part : part + 2])
    torch.testing.assert_close(split.compute(), whole.compute())
    expected = {ExplanationConsensus: consensus, ExplanationRecurrence: recurrence}[kind](maps, target)
    torch.testing.assert_close(whole.compute(), expected)
