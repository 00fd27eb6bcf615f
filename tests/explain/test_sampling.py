"""The draws: a sliced Latin hypercube, an image's own, and the same whatever else is explained beside it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from egcam_lightning.explain import Draws, ExpectedGradCAM, Perturbation, sample_draws
from egcam_lightning.explain.sampling import sample_noise
from tests.support.maps import relative_error
from tests.support.networks import Case
from tests.support.pictures import images

pytestmark = pytest.mark.cpu("draws are made on the CPU, whatever the device")

repeatable = settings(deadline=None, derandomize=True, database=None, max_examples=60)
seeds = st.integers(0, 2**32 - 1)
indices = st.lists(st.integers(0, 10**6), min_size=1, max_size=4)
intervals = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted).map(tuple)


@repeatable
@given(st.integers(1, 60), st.integers(1, 20), indices, seeds)
def test_every_stratum_is_drawn_once(num_samples: int, rows: int, index: list[int], seed: int) -> None:
    draws = sample_draws(num_samples, rows, index, seed=seed)
    order = draws.place.argsort(0)
    place = draws.place.gather(0, order)
    # Where places are denser they weigh less: strata of the path are as wide as the weights of their draws say.
    weight = torch.ones_like(place) if draws.weight is None else draws.weight.gather(0, order)
    upper = weight.cumsum(0) / num_samples
    assert (place >= upper - weight / num_samples - 1e-5).all()
    assert (place <= upper + 1e-5).all()


@repeatable
@given(st.integers(2, 9), st.integers(1, 8), indices, seeds)
def test_the_middle_of_a_path_is_drawn_from_more_often(slices: int, rows: int, index: list[int], seed: int) -> None:
    draws = sample_draws(slices * rows, rows, index, seed=seed)
    assert draws.weight is not None
    middle = (draws.place > 0.375) & (draws.place < 0.675)
    if slices % 4 == 0:
        assert (middle.double().mean(0) == 0.5).all()
    for weight, baseline in zip(draws.weight.T, draws.baseline_index.T, strict=True):
        for row in range(rows):
            torch.testing.assert_close(weight[baseline == row].mean(), torch.tensor(1.0))


@pytest.mark.parametrize("power", [0, 1, 2, 5])
def test_weighted_draws_give_the_integral_along_the_path(power: int) -> None:
    draws = sample_draws(32, 8, range(4000))
    assert draws.weight is not None
    found = (draws.weight * draws.place**power).mean(0).double()
    error = float(found.std()) / len(found) ** 0.5
    assert abs(float(found.mean()) - 1 / (power + 1)) < 4 * error + 1e-6


@pytest.mark.parametrize(
    ("num_samples", "rows", "interval"),
    [(8, 8, (0.0, 1.0)), (9, 8, (0.0, 1.0)), (32, 8, (0.0, 0.5)), (8, 1, (1.0, 1.0))],
)
def test_draws_count_alike_with_one_place_a_path_and_on_a_part_of_it(
    num_samples: int, rows: int, interval: tuple[float, float]
) -> None:
    assert sample_draws(num_samples, rows, [0], interval).weight is None


@repeatable
@given(st.integers(1, 60), st.integers(1, 20), indices, seeds)
def test_baselines_are_drawn_equally_often(num_samples: int, rows: int, index: list[int], seed: int) -> None:
    baseline = sample_draws(num_samples, rows, index, seed=seed).baseline_index
    for column in baseline.T:
        counts = column.bincount(minlength=rows)
        assert len(counts) == rows
        assert counts.max() - counts.min() <= 1


@repeatable
@given(st.integers(1, 6), st.integers(1, 12), indices, seeds)
def test_each_baseline_has_one_place_in_each_coarse_stratum(
    slices: int, rows: int, index: list[int], seed: int
) -> None:
    draws = sample_draws(slices * rows, rows, index, seed=seed)
    weight = torch.ones_like(draws.place) if draws.weight is None else draws.weight
    for place, width, baseline in zip(draws.place.T, weight.T / slices, draws.baseline_index.T, strict=True):
        for row in range(rows):
            own, order = place[baseline == row].sort()
            upper = width[baseline == row][order].cumsum(0)
            assert (own >= upper - width[baseline == row][order] - 1e-5).all()
            assert (own <= upper + 1e-5).all()


@repeatable
@given(st.integers(1, 20), st.integers(1, 8), indices, seeds, st.integers(0, 4))
def test_an_images_draws_do_not_depend_on_the_others(
    num_samples: int, rows: int, index: list[int], seed: int, start: int
) -> None:
    together = sample_draws(num_samples, rows, index, seed=seed)
    part = index[start:] or index[-1:]
    alone = sample_draws(num_samples, rows, part, seed=seed)
    assert torch.equal(alone.place, together.place[:, -len(part) :])
    assert torch.equal(alone.baseline_index, together.baseline_index[:, -len(part) :])


@repeatable
@given(st.integers(1, 20), intervals, seeds)
def test_places_stay_in_the_interval(num_samples: int, interval: tuple[float, float], seed: int) -> None:
    place = sample_draws(num_samples, 3, [0, 1], interval, seed).place
    low, high = torch.tensor(interval)  # as exact as places are
    assert (place >= low).all()
    assert (place <= high).all()


def test_images_and_seeds_have_draws_of_their_own() -> None:
    draws = sample_draws(8, 4, range(20))
    assert len(draws.place.T.unique(dim=0)) == 20
    assert len(draws.baseline_index.T.unique(dim=0)) > 15
    assert not torch.equal(draws.place, sample_draws(8, 4, range(20), seed=1).place)


def test_places_and_baselines_are_uniform_over_many_images() -> None:
    draws = sample_draws(6, 3, range(2000))
    first = draws.baseline_index[0].bincount(minlength=3) / 2000
    assert (first - 1 / 3).abs().max() < 0.04  # 4 standard deviations
    assert draws.weight is not None  # of two strata, the middle of the path is the border
    within = torch.where(draws.place < 0.525, draws.place / 0.525, (draws.place - 0.525) / 0.475).double() * 3 % 1
    assert abs(float(within.mean()) - 0.5) < 0.012
    assert abs(float(within.var()) - 1 / 12) < 0.005


def test_noise_is_standard_normal_and_belongs_to_image_and_draw() -> None:
    noise = sample_noise((2000,), [3, 4, 3, 4], [0, 0, 1, 1], seed=5)
    assert noise.mean(1).abs().max() < 0.1
    assert (noise.std(1) - 1).abs().max() < 0.1
    assert torch.corrcoef(noise).fill_diagonal_(0).abs().max() < 0.1
    assert torch.equal(sample_noise((2000,), [4], [1], seed=5)[0], noise[3])
    assert not torch.equal(sample_noise((2000,), [4], [1], seed=6)[0], noise[3])


def test_draws_of_different_shapes_raise() -> None:
    with pytest.raises(ValueError, match=r"one shape.*\(2, 3\).*\(3, 3\)"):
        Draws(torch.zeros(2, 3, dtype=torch.long), torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"`noise` to start with.*\(2, 3\).*\(3, 2, 4\)"):
        Draws(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3), torch.zeros(3, 2, 4))
    with pytest.raises(ValueError, match=r"`weight` of the shape of `place`, \(2, 3\).*\(3, 2\)"):
        Draws(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3), weight=torch.zeros(3, 2))


NOISY = [
    Perturbation(noise=0.2),
    Perturbation.expected("input"),
    Perturbation(space="input", noise=0.2),
    Perturbation.smooth_grad_cam(),
]


@pytest.mark.parametrize("perturbation", [Perturbation(), *NOISY], ids=repr)
def test_the_same_seed_gives_the_same_bits(vgg_case: Case, perturbation: Perturbation) -> None:
    def explain(seed: int) -> Tensor:
        explainer = ExpectedGradCAM(vgg_case.model, vgg_case.layer, perturbation, num_samples=8, seed=seed)
        return explainer(vgg_case.inputs, vgg_case.baselines, vgg_case.target).draws

    torch.rand(7)  # where the global generator stands does not matter
    assert torch.equal(explain(3), explain(3))
    assert not torch.equal(explain(3), explain(4))


@pytest.mark.parametrize("perturbation", [Perturbation(), *NOISY], ids=repr)
def test_chunks_and_splits_of_the_batch_change_nothing(vgg_case: Case, perturbation: Perturbation) -> None:
    model, layer = vgg_case.model, vgg_case.layer
    inputs, target = images(4), torch.tensor([1, 4, 2, 0])
    index = [5, 0, 9, 2]
    whole = ExpectedGradCAM(model, layer, perturbation, num_samples=6)(
        inputs, vgg_case.baselines, target, image_index=index
    )
    chunked = ExpectedGradCAM(model, layer, perturbation, num_samples=6, chunk_size=5)(
        inputs, vgg_case.baselines, target, image_index=index
    )
    assert torch.equal(chunked.baseline_index, whole.baseline_index)
    assert relative_error(chunked.draws, whole.draws) < 1e-4
    explainer = ExpectedGradCAM(model, layer, perturbation, num_samples=6)
    for rows in ([0, 1, 2], [3]):
        part = explainer(inputs[rows], vgg_case.baselines, target[rows], image_index=[index[r] for r in rows])
        assert torch.equal(part.baseline_index, whole.baseline_index[:, rows])
        assert relative_error(part.draws, whole.draws[:, rows]) < 1e-4


def test_common_draws_make_a_frozen_model_drift_by_nothing(vgg_case: Case) -> None:
    explainer = ExpectedGradCAM(vgg_case.model, vgg_case.layer, num_samples=8)
    first, second = (explainer(vgg_case.inputs, vgg_case.baselines, vgg_case.target) for _ in range(2))
    assert torch.equal(first.attribution, second.attribution)


def test_one_draw_is_all_there_is_without_path_and_noise(vgg_case: Case) -> None:
    for perturbation in (Perturbation.grad_cam(), Perturbation(baseline="zeros", interval=(0.5, 0.5))):
        explainer = ExpectedGradCAM(vgg_case.model, vgg_case.layer, perturbation, num_samples=32)
        explanation = explainer(vgg_case.inputs, target=1)
        assert len(explanation.draws) == 1
        assert (explanation.standard_error == 0).all()
