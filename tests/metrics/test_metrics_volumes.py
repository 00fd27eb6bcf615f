"""Metrics of maps over three axes: the definitions that hold for images, along one axis more."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from egcam_lightning.metrics import functional as F

SHAPE = (4, 3, 4, 5)
TARGET = torch.tensor([0, 1, 0, 1])


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def as_images(volumes: Tensor) -> Tensor:
    """The same cells, in the same order, as maps over two axes: ``(..., d, h, w)`` to ``(..., d * h, w)``."""
    return volumes.flatten(-3, -2)


@pytest.mark.parametrize("distance", [F.rank_drift, F.top_iou_drift])
def test_distances_of_cells_do_not_ask_where_the_cells_are(distance):
    first, second = randn(*SHAPE), randn(*SHAPE, seed=1)
    assert torch.equal(distance(first, second), distance(as_images(first), as_images(second)))
    assert distance(first, first).tolist() == [0.0] * 4


@pytest.mark.parametrize("value", [F.complexity, F.sparseness])
def test_concentration_counts_all_cells(value):
    maps = randn(*SHAPE)
    assert torch.equal(value(maps), value(as_images(maps)))


@pytest.mark.parametrize("agreement", [F.consensus, F.recurrence])
def test_agreement_is_that_of_all_cells(agreement):
    maps = randn(*SHAPE)
    torch.testing.assert_close(agreement(maps, TARGET), agreement(as_images(maps), TARGET))


def test_the_noise_floor_is_that_of_all_cells():
    draws, index = randn(8, *SHAPE), torch.arange(8)[:, None].expand(8, 4)
    torch.testing.assert_close(F.noise_floor(draws, index), F.noise_floor(as_images(draws), index))


def test_completeness_sums_over_all_cells():
    maps, score, baseline = randn(*SHAPE), randn(4, seed=1), randn(4, seed=2)
    difference = score - baseline
    expected = (maps.sum((1, 2, 3)) - difference).abs() / difference.abs()
    torch.testing.assert_close(F.completeness_gap(maps, score, baseline), expected)


def test_the_centre_moves_along_the_depth_too():
    front, back = torch.zeros(1, 3, 4, 5), torch.zeros(1, 3, 4, 5)
    front[0, 0, 1, 1] = back[0, 2, 1, 1] = 1
    assert F.centre_shift(front, back).item() == pytest.approx(2 / math.sqrt(9 + 16 + 25))


def test_structure_is_compared_along_the_depth_too():
    maps = randn(2, 6, 7, 8)
    assert F.ssim_drift(maps, maps).tolist() == [0.0, 0.0]
    moved = F.ssim_drift(maps, maps.roll(3, 1))
    assert ((moved > 0.1) & (moved <= 2)).all()
    assert F.ssim_drift(maps[:, :5], maps[:, :5]) is None


def test_masks_are_over_all_axes():
    maps, mask = torch.zeros(2, 2, 2, 2), torch.zeros(2, 4, 4, 4, dtype=torch.bool)
    maps[:, 0, 0, 0], maps[:, 1, 0, 0] = 3, 1
    mask[0, :2, :2, :2] = True  # the first plane's corner, and no other
    mask[1, :, 2:, 2:] = True
    share = interpolate(maps[:1, None], (4, 4, 4), mode="trilinear")[0, 0][mask[0]].sum() / (4 * 8)
    torch.testing.assert_close(F.relevance_mass(maps, mask)[0], share)
    assert F.relevance_mass(maps, mask)[0] > F.relevance_mass(maps, mask)[1]
    assert F.pointing_game(maps, mask).tolist() == [1.0, 0.0]
    null = F.consensus_null(mask, torch.tensor([0, 1]), (2, 2, 2))
    assert null is not None
    assert null.item() == 0.0


def test_blocks_are_square_on_a_slice_and_fill_the_same_share_of_the_depth():
    blocks = F.random_blocks((8, 12, 16), 512, seed=1)
    assert blocks.shape == (512, 8, 12, 16)
    deep, high, wide = (blocks.any(3).any(2), blocks.any(3).any(1), blocks.any(2).any(1))
    assert torch.equal(high.sum(1), wide.sum(1))
    assert torch.equal(blocks.flatten(1).sum(1), deep.sum(1) * high.sum(1) * wide.sum(1))
    assert (deep.sum(1).amin(), deep.sum(1).amax()) == (1, 4)
    assert (high.sum(1).amin(), high.sum(1).amax()) == (2, 6)
    assert bool(blocks.any(0).flatten()[[0, -1]].all())


def test_a_clip_of_few_frames_is_blurred_as_its_frames_are():
    frame = torch.zeros(1, 1, 60, 60)
    frame[..., 20:32, 20:32] = 1
    clip = frame[:, :, None].expand(-1, -1, 4, -1, -1)
    torch.testing.assert_close(F.blurred(clip), F.blurred(frame)[:, :, None].expand_as(clip))


def test_a_true_map_of_a_volume_is_faithful_and_a_wrong_one_is_not():
    """The score is the sum over one octant: the map that says so predicts every block's effect."""
    volumes = randn(2, 1, 8, 8, 8).abs()
    weight = torch.zeros(8, 8, 8)
    weight[4:, :4, 4:] = 1

    def score(images: Tensor, target: Tensor) -> Tensor:
        return (images[:, 0] * weight).sum((1, 2, 3))

    black, target = torch.zeros_like(volumes), torch.zeros(2, dtype=torch.int64)
    right = volumes[:, 0] * weight
    found = [F.infidelity(score, volumes, maps, target, replacement=black) for maps in (right, right.flip(1))]
    assert found[0].max() < 1e-6
    assert found[1].min() > 0.1
    inserted = [F.insertion_auc(score, volumes, maps, target, replacement=black) for maps in (right, right.flip(1))]
    assert (inserted[0] > inserted[1]).all()
    deleted = [F.deletion_auc(score, volumes, maps, target, replacement=black) for maps in (right, right.flip(1))]
    assert (deleted[0] < deleted[1]).all()
