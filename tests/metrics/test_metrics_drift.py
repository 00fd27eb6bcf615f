"""Drift and its noise floor: the distances against other code, the floor against what it promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from egcam_lightning.metrics.functional import (
    centre_shift,
    noise_floor,
    rank_drift,
    significant,
    ssim_drift,
    top_iou_drift,
)

DISTANCES = [rank_drift, ssim_drift, top_iou_drift, centre_shift]
calm = settings(derandomize=True, database=None, deadline=None, max_examples=60)
# Few values, so that ties are common, and some that differ by little.
cells = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6, width=32))


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def snapshot(truth, num_baselines, per_baseline, seed, noise=1.0):
    """Draws ``(S, B, h, w)`` around the truth, each baseline with an effect of its own that its draws share."""
    effect = noise * randn(num_baselines, *truth.shape, seed=seed)
    index = torch.arange(num_baselines).repeat(per_baseline)
    draws = truth + effect[index] + 0.3 * noise * randn(len(index), *truth.shape, seed=seed + 1)
    return draws, index[:, None].expand(-1, len(truth))


@calm
@given(arrays(np.float32, (3, 2, 5), elements=cells), arrays(np.float32, (3, 2, 5), elements=cells))
def test_rank_drift_is_one_minus_scipys_spearman(first, second):
    from scipy.stats import spearmanr

    ours = rank_drift(torch.from_numpy(first), torch.from_numpy(second))
    for value, a, b in zip(ours, first, second, strict=True):
        if (a == b).all():
            assert value == 0
        elif np.ptp(a) == 0 or np.ptp(b) == 0:
            assert value == 1
        else:
            assert value == pytest.approx(1 - spearmanr(a.ravel(), b.ravel()).statistic, abs=1e-5)


def test_rank_drift_is_torchmetrics_spearman_on_large_maps():
    from torchmetrics.functional.regression import spearman_corrcoef

    a, b = randn(3, 56, 56), randn(3, 56, 56, seed=1).round()
    b = b + 0.5 * a.round()
    expected = 1 - spearman_corrcoef(a.flatten(1).T, b.flatten(1).T)
    torch.testing.assert_close(rank_drift(a, b), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grid", [(6, 6), (7, 7), (6, 20), (14, 14)])
def test_ssim_drift_is_torchmetrics_with_a_data_range_for_each_image(grid):
    from torchmetrics.functional.image import structural_similarity_index_measure

    a = randn(4, *grid) * torch.tensor([1e-3, 1.0, 10.0, 1e4]).view(-1, 1, 1)
    b = a + 0.3 * a.abs().mean() * randn(4, *grid, seed=1)
    radius = min(5, (min(grid) - 1) // 2)
    ours = ssim_drift(a, b)
    for i in range(4):
        pair = torch.stack([a[i], b[i]])
        similarity = structural_similarity_index_measure(
            a[i][None, None], b[i][None, None], sigma=0.3 * radius, data_range=float(pair.max() - pair.min())
        )
        assert float(ours[i]) == pytest.approx(1 - float(similarity), rel=1e-4, abs=1e-5)


def test_ssim_drift_of_a_grid_of_eleven_and_more_is_torchmetrics_with_its_defaults():
    from torchmetrics.functional.image import structural_similarity_index_measure

    a, b = randn(1, 12, 12), randn(1, 12, 12, seed=1)
    span = float(torch.stack([a, b]).max() - torch.stack([a, b]).min())
    expected = 1 - structural_similarity_index_measure(a[None], b[None], data_range=span)
    assert float(ssim_drift(a, b)) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("grid", [(5, 5), (4, 9)])
def test_ssim_drift_says_nothing_on_small_grids(grid):
    assert ssim_drift(randn(2, *grid), randn(2, *grid, seed=1)) is None


def test_top_iou_drift_by_hand():
    a = torch.arange(10.0).view(1, 2, 5)  # top two: cells 9 and 8
    b = a.clone()
    b[0, 0, 0] = 8.5  # top two: cells 9 and 0
    assert float(top_iou_drift(a, b)) == pytest.approx(1 - 1 / 3)
    assert float(top_iou_drift(a, -a)) == 1.0


def test_top_iou_drift_gives_ties_to_the_first_cell_and_keeps_at_least_one():
    a = torch.tensor([[[5.0, 5.0, 0.0, 0.0]]])
    b = torch.tensor([[[5.0, 1.0, 0.0, 0.0]]])
    assert float(top_iou_drift(a, b)) == 0.0  # round(0.2 * 4) = 1 cell, the first of the two


def test_top_iou_drift_rounds_the_number_of_cells():
    a = torch.arange(14.0).view(1, 2, 7)  # 0.2 of 14 cells is 2.8, three of them: 13, 12 and 11
    b = a.clone()
    b[0, 0, :2] = 20.0  # 13, 1 and 0
    assert float(top_iou_drift(a, b)) == pytest.approx(1 - 1 / 5)


def test_centre_shift_by_hand():
    a, b = torch.zeros(1, 3, 4), torch.zeros(1, 3, 4)
    a[0, 0, 0], a[0, 2, 0] = 2.0, 2.0  # centre at (1, 0)
    b[0, 1, 3] = 7.0  # centre at (1, 3)
    a[0, 2, 3] = -50.0  # only the positive part counts
    assert float(centre_shift(a, b)) == pytest.approx(3 / 5)


@pytest.mark.parametrize("distance", DISTANCES)
def test_what_every_distance_says_of_equal_constant_and_broken_maps(distance):
    a, flat, broken = randn(1, 6, 6), torch.full((1, 6, 6), 2.0), randn(1, 6, 6)
    broken[0, 2, 2] = torch.nan
    first = torch.cat([a, flat, a, flat, flat * 0, broken, a])
    second = torch.cat([a, a, flat, flat, flat * 0, broken, a.clone().index_fill_(1, torch.tensor(0), torch.inf)])
    values = distance(first, second)
    torch.testing.assert_close(values[:5], torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0]), rtol=0, atol=0)
    assert values[5:].isnan().all()


def test_centre_shift_of_maps_with_nothing_positive():
    negative, other = -randn(1, 3, 3).abs(), -randn(1, 3, 3, seed=1).abs()
    assert float(centre_shift(negative, other)) == 0.0
    assert float(centre_shift(negative, -other)) == 1.0


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_no_distance_depends_on_the_scale_of_both_maps(distance, scale):
    a, b = randn(3, 6, 7), randn(3, 6, 7, seed=1)
    torch.testing.assert_close(distance(a * scale, b * scale), distance(a, b), rtol=1e-4, atol=1e-5)


@calm
@given(st.integers(0, 10_000), st.integers(6, 9), st.integers(6, 9))
def test_distances_are_symmetric_bounded_and_blind_to_the_order_of_images(seed, h, w):
    a, b = randn(4, h, w, seed=seed), randn(4, h, w, seed=seed + 1)
    order = torch.tensor([2, 0, 3, 1])
    for distance, top in zip(DISTANCES, (2, 2, 1, 1), strict=True):
        values = distance(a, b)
        assert ((values >= 0) & (values <= top)).all()
        torch.testing.assert_close(values, distance(b, a), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(values[order], distance(a[order], b[order]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("num_baselines", "per_baseline"), [(32, 1), (8, 4), (16, 2)])
@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_fresh_baselines_alone_are_called_significant_for_at_most_a_twentieth(num_baselines, per_baseline, noise):
    truth = randn(400, 7, 7, seed=99)
    one, index = snapshot(truth, num_baselines, per_baseline, 1, noise)
    two, _ = snapshot(truth, num_baselines, per_baseline, 3, noise)
    drift = rank_drift(one.mean(0), two.mean(0))
    called = significant(drift, noise_floor(one, index), noise_floor(two, index))
    assert drift.min() > 0
    assert called.float().mean() <= 0.05


@pytest.mark.parametrize(("num_baselines", "per_baseline"), [(32, 1), (8, 4)])
def test_a_real_change_is_called_significant_for_at_least_nine_in_ten(num_baselines, per_baseline):
    before, after = randn(400, 7, 7, seed=99), randn(400, 7, 7, seed=98)
    one, index = snapshot(before, num_baselines, per_baseline, 1)
    two, _ = snapshot(after, num_baselines, per_baseline, 3)
    drift = rank_drift(one.mean(0), two.mean(0))
    assert significant(drift, noise_floor(one, index), noise_floor(two, index)).float().mean() >= 0.9


def test_halves_of_the_draws_would_call_chance_significant_where_draws_outnumber_baselines():
    truth = randn(400, 7, 7, seed=99)
    (one, _), (two, _) = snapshot(truth, 8, 4, 1), snapshot(truth, 8, 4, 3)
    drift = rank_drift(one.mean(0), two.mean(0))
    every_draw_its_own = torch.arange(32)[:, None].expand(-1, 400)
    naive = significant(drift, noise_floor(one, every_draw_its_own), noise_floor(two, every_draw_its_own))
    assert naive.float().mean() > 0.2


def test_the_floor_of_an_image_does_not_depend_on_its_batch():
    draws = randn(16, 6, 4, 4)
    index = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(i)) % 8 for i in range(6)], 1)
    index[:, 3] = index[:, 3] * 1000 + 7  # the numbers do not matter, only which are equal
    whole = noise_floor(draws, index, seed=5)
    parts = [noise_floor(draws[:, part], index[:, part], seed=5) for part in torch.tensor([0, 4, 3, 5, 1, 2]).split(2)]
    torch.testing.assert_close(torch.cat(parts), whole[[0, 4, 3, 5, 1, 2]], rtol=1e-6, atol=1e-6)
    assert not torch.equal(noise_floor(draws, index, seed=6), whole)


def test_the_floor_by_hand_where_every_split_gives_the_same():
    # All draws of a baseline are in the same half: with equal maps of all baselines the two halves agree exactly,
    # although the draws within a baseline differ wildly.
    wild = randn(2, 1, 3, 3) * 100
    draws = torch.cat([wild] * 4)
    index = torch.arange(4).repeat_interleave(2)[:, None]
    assert float(noise_floor(draws, index)) == pytest.approx(0.0, abs=1e-6)


def test_the_floor_is_a_quantile_over_halves_of_the_baselines():
    draws = randn(8, 1, 3, 3)
    index = torch.tensor([5, 1, 9, 2, 1, 9, 2, 5])[:, None]
    means = {row: draws[index[:, 0] == row].mean(0) for row in (1, 2, 5, 9)}
    halves = [((1, 2), (5, 9)), ((1, 5), (2, 9)), ((1, 9), (2, 5))]  # all there are
    drifts = [float(rank_drift(means[a] + means[b], means[c] + means[d])) for (a, b), (c, d) in halves]
    assert len(set(drifts)) == 3

    def floor(**options):
        return float(noise_floor(draws, index, num_splits=64, **options))

    assert floor(quantile=0.0) == pytest.approx(min(drifts), abs=1e-5)
    assert floor(quantile=0.5) == pytest.approx(sorted(drifts)[1], abs=1e-5)
    assert floor() == pytest.approx(max(drifts), abs=1e-5)
    assert floor() == floor(quantile=0.95)


def test_the_floor_needs_four_baselines():
    draws = randn(8, 2, 3, 3)
    three = (torch.arange(8) % 3)[:, None].expand(8, 2)
    assert noise_floor(draws, three) is None
    assert noise_floor(draws, torch.full((8, 2), -1)) is None
    mixed = torch.stack([torch.arange(8) % 3, torch.arange(8) % 4], 1)
    floor = noise_floor(draws, mixed)
    assert floor[0].isnan()
    assert floor[1].isfinite()


def test_a_broken_draw_has_no_floor_and_is_never_significant():
    draws = randn(8, 2, 3, 3)
    draws[3, 0] = torch.nan
    floor = noise_floor(draws, torch.arange(8)[:, None].expand(8, 2))
    assert floor[0].isnan()
    assert floor[1].isfinite()
    assert significant(torch.tensor([2.0, 2.0]), floor).tolist() == [False, True]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: rank_drift(randn(2, 3, 3), randn(2, 3, 4)), ValueError, "same shape"),
        (lambda: rank_drift(torch.ones(2, 3, 3).long(), randn(2, 3, 3)), TypeError, "floats"),
        (lambda: rank_drift(randn(3, 3), randn(3, 3)), ValueError, r"\(B, h, w\)"),
        (lambda: top_iou_drift(randn(2, 3, 3), randn(2, 3, 3), share=0.0), ValueError, "share"),
        (lambda: noise_floor(randn(2, 3, 3), torch.zeros(2, 3)), ValueError, r"\(S, B, h, w\)"),
        (lambda: noise_floor(randn(4, 2, 3, 3), torch.zeros(4, 3).long()), ValueError, "baseline_index"),
        (lambda: noise_floor(randn(4, 2, 3, 3), torch.zeros(4, 2)), TypeError, "integers"),
        (lambda: noise_floor(randn(4, 2, 3, 3), torch.zeros(4, 2).long(), num_splits=0), ValueError, "num_splits"),
        (lambda: significant(torch.ones(2)), ValueError, "floor"),
    ],
)
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
