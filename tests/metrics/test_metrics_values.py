"""Hand-computed values, documented values of odd input, and properties that hold for any input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from egcam_lightning.metrics.functional import (
    block_effects,
    blurred,
    centre_shift,
    class_scores,
    completeness_gap,
    complexity,
    consensus,
    consensus_null,
    deletion_auc,
    infidelity,
    infidelity_of,
    insertion_auc,
    max_sensitivity,
    noise_floor,
    pointing_game,
    random_blocks,
    rank_drift,
    relevance_mass,
    sparseness,
    ssim_drift,
    top_iou_drift,
)
from egcam_lightning.metrics.functional._maps import spread

calm = settings(derandomize=True, database=None, deadline=None, max_examples=40)
NAN = float("nan")


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def total(images, target):
    return images.flatten(1).sum(1)


def same(ours, expected):
    torch.testing.assert_close(ours, torch.tensor(expected), rtol=1e-5, atol=1e-6, equal_nan=True)


class TestCompleteness:
    def test_by_hand_with_and_without_off_grid(self):
        maps, score, baseline = torch.ones(2, 2, 2), torch.tensor([6.0, -3.0]), torch.tensor([1.0, 1.0])
        same(completeness_gap(maps, score, baseline), [0.2, 2.0])
        same(completeness_gap(maps, score, baseline, torch.tensor([1.0, -8.0])), [0.0, 0.0])

    def test_odd_input(self):
        maps = torch.stack([torch.zeros(2, 2), torch.ones(2, 2), torch.ones(2, 2), torch.full((2, 2), NAN)])
        score, baseline = torch.tensor([1.0, 1.0, 1.0, 1.0]), torch.tensor([1.0, 1.0, NAN, 0.0])
        same(completeness_gap(maps, score, baseline), [0.0, float("inf"), NAN, NAN])


class TestInfidelity:
    def test_is_zero_for_the_exact_attribution_of_a_linear_model(self):
        images, weight = randn(3, 2, 12, 12), randn(2, 12, 12, seed=1)
        black = torch.zeros_like(images)

        def linear(x, target):
            return (x * weight).flatten(1).sum(1)

        exact = (images * weight).sum(1)
        for normalize in (True, False):
            value = infidelity(linear, images, exact, torch.arange(3), normalize=normalize, replacement=black)
            torch.testing.assert_close(value, torch.zeros(3), rtol=0, atol=1e-6)
        # Against any replacement the exact attribution is that of the difference; scaled, only Yeh's own value moves.
        relative = ((images - blurred(images)) * weight).sum(1)
        same(infidelity(linear, images, 3 * relative, torch.arange(3)), [0.0] * 3)
        assert (infidelity(linear, images, 3 * relative, torch.arange(3), normalize=False) > 0.1).all()

    def test_by_hand(self):
        predicted = torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 2.0]])
        drop = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
        # First image: the scale is 2 / 2 = 1, the rest (1 + 0 + 1) / 3 over (4 / 3).
        same(infidelity_of(predicted, drop), [0.5, 1.0, 1.0, 1.0])
        same(infidelity_of(predicted, drop, normalize=False), [2 / 3, 11 / 3, 14 / 3, 2.0])

    def test_odd_maps(self, world):
        maps = world.maps.clone()
        maps[0], maps[1], maps[2, 0, 0] = 0.0, torch.inf, NAN
        value = infidelity(class_scores(world.model), world.images, maps, world.target)
        assert value[0] == 1.0
        assert value[1:3].isnan().all()
        assert value[3:].isfinite().all()

    def test_costs_one_pass_a_block_and_one_more_for_unknown_scores(self, world):
        seen = []

        def count(images, target):
            seen.append(len(images))
            return total(images, target)

        infidelity(count, world.images, world.maps, world.target)
        assert seen == [5, 60]
        seen.clear()
        infidelity(count, world.images, world.maps, world.target, scores=total(world.images, None), chunk_size=32)
        assert seen == [30, 30]

    def test_chunks_are_halved_where_memory_runs_out(self, world):
        def scarce(images, target):
            if len(images) > 12:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return total(images, target)

        plenty = infidelity(total, world.images, world.maps, world.target)
        same(infidelity(scarce, world.images, world.maps, world.target), plenty)

    def test_known_scores_and_chunks_change_nothing(self, world):
        score = class_scores(world.model)
        values = [
            infidelity(score, world.images, world.maps, world.target, scores=scores, chunk_size=size)
            for scores in (None, score(world.images, world.target))
            for size in (None, 1, 7, 1000)
        ]
        for value in values[1:]:
            torch.testing.assert_close(value, values[0], rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("size", [(16, 16), (9, 30), (224, 224), (1, 1)])
    def test_blocks_are_square_inside_and_reach_the_corners(self, size):
        blocks = random_blocks(size, 512, seed=1)
        for axis in range(len(size)):
            sides = blocks.movedim(axis + 1, -1).flatten(1, -2).any(1).sum(-1)
            assert (sides >= max(1, round(min(size) / 8) - 1)).all()
            assert (sides <= max(1, round(min(size) / 2))).all()
        assert torch.equal(blocks.flatten(1).sum(1), sides ** len(size))
        share = blocks.float().mean(0)
        assert share.flatten()[0] > 0
        assert share.flatten()[-1] > 0

    def test_blocks_leave_the_global_generator_alone(self):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        first = random_blocks((16, 16), 16, seed=1)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(first, random_blocks((16, 16), 16, seed=1))
        assert not torch.equal(first, random_blocks((16, 16), 16, seed=2))


class TestSpread:
    @calm
    @given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 20), st.integers(0, 20), st.integers(0, 999))
    def test_keeps_the_total_whatever_the_sizes_are(self, h, w, more_h, more_w, seed):
        maps = randn(2, h, w, seed=seed)
        pixels = spread(maps, (h + more_h, w + more_w))
        assert pixels.shape == (2, h + more_h, w + more_w)
        torch.testing.assert_close(pixels.sum((1, 2)), maps.sum((1, 2)), rtol=1e-4, atol=1e-4)

    def test_of_the_same_size_is_the_map(self):
        torch.testing.assert_close(spread(randn(2, 5, 7), (5, 7)), randn(2, 5, 7))


class TestInsertionDeletion:
    def test_by_hand_on_a_mean(self):
        image = torch.zeros(1, 1, 4, 4)
        image[..., :2] = 1.0
        mean = lambda x, target: x.mean((1, 2, 3))  # noqa: E731
        black, target = torch.zeros_like(image), torch.tensor([0])
        # 4 midpoints: 2, 6, 10, 14 of 16 pixels. In order of relevance 2, 6, 8, 8 white ones are in.
        same(insertion_auc(mean, image, image[:, 0], target, num_steps=4, replacement=black), [24 / 64])
        same(deletion_auc(mean, image, image[:, 0], target, num_steps=4, replacement=black), [8 / 64])
        same(insertion_auc(mean, image, -image[:, 0], target, num_steps=4, replacement=black), [8 / 64])

    def test_a_constant_map_goes_from_the_first_pixel_on(self):
        image = torch.zeros(1, 1, 4, 4)
        image[..., :2, :] = 1.0
        mean = lambda x, target: x.mean((1, 2, 3))  # noqa: E731
        flat, target = torch.zeros(1, 2, 2), torch.tensor([0])
        same(insertion_auc(mean, image, flat, target, num_steps=4, replacement=image * 0), [24 / 64])

    def test_cost_one_pass_a_step(self, world):
        seen = []

        def count(images, target):
            seen.append(len(images))
            return total(images, target)

        insertion_auc(count, world.images, world.maps, world.target)
        deletion_auc(count, world.images, world.maps, world.target, chunk_size=40)
        assert seen == [60, 30, 30]

    def test_a_broken_map_or_score_has_no_value(self, world):
        maps = world.maps.clone()
        maps[0, 0, 0] = NAN
        score = lambda x, target: torch.where(target == 2, NAN, x.mean((1, 2, 3)))  # noqa: E731
        for function in (insertion_auc, deletion_auc):
            value = function(score, world.images, maps, world.target)
            assert value.isnan().tolist() == [True, False, True, False, False]

    def test_work_on_volumes(self):
        volumes, maps = randn(2, 1, 6, 8, 8).abs(), randn(2, 3, 4, 4)
        for function in (insertion_auc, deletion_auc, infidelity):
            assert function(total, volumes, maps, torch.tensor([0, 1])).isfinite().all()


class TestSensitivity:
    def test_of_a_map_that_never_changes_is_zero(self, world):
        fixed = world.maps[:1]
        value = max_sensitivity(
            lambda images, target: fixed.expand(len(images), -1, -1),
            world.images,
            fixed.expand(5, -1, -1),
            world.target,
        )
        same(value, [0.0] * 5)

    def test_of_an_empty_map_is_the_change_itself(self, world):
        explain = lambda images, target: images[:, 0] - world.images.new_ones(())  # noqa: E731
        ones = torch.ones_like(world.images)
        value = max_sensitivity(explain, ones, explain(ones, None), world.target, radius=0.5)
        assert ((value > 1) & (value < 8)).all()  # the norm of 256 numbers of up to a half

    def test_of_whole_numbers_is_measured_at_least_one_level_away(self):
        images = torch.randint(0, 256, (3, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        images[0, :, :8] = torch.tensor([0, 255, 7], dtype=torch.uint8).view(3, 1, 1)
        seen = []

        def grey(points, target):
            assert points.dtype == torch.uint8
            seen.append(points)
            return points.float().mean(1)

        target = torch.zeros(3, dtype=torch.long)
        small = max_sensitivity(grey, images, grey(images, None), target)
        changes = torch.stack(seen[1:]).int() - images.int()
        assert changes.abs().amax() == 1  # nothing wraps around at 0 and 255
        assert 0.4 < changes[:, 1:].abs().float().mean() < 0.6
        assert (small > 0).all()
        wide = max_sensitivity(grey, images, grey(images, None), target, radius=5.0)
        assert ((wide > 3 * small) & (wide < 8 * small)).all()

    def test_has_no_value_where_the_images_are_of_too_coarse_a_type_to_be_perturbed(self):
        images = 512 + torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8).bfloat16() % 64 * 4
        grey = lambda images, target: images.float().mean(1)  # noqa: E731
        target = torch.zeros(2, dtype=torch.long)
        assert max_sensitivity(grey, images, grey(images, None), target).isnan().all()
        assert (max_sensitivity(grey, images, grey(images, None), target, radius=4.0) > 0).all()
        constant = torch.full((2, 3, 8, 8), 9, dtype=torch.int64)  # and stays within its own range
        assert max_sensitivity(grey, constant, grey(constant, None), target).isnan().all()

    def test_gives_the_explainer_gradients(self, world):
        def saliency(images, target):
            images = images.requires_grad_()
            return torch.autograd.grad(images.square().sum(), images)[0][:, 0]

        with torch.no_grad():
            value = max_sensitivity(saliency, world.images, 2 * world.images[:, 0], world.target)
        assert (value > 0).all()

    def test_leaves_the_global_generator_alone(self, world):
        before = torch.get_rng_state()
        max_sensitivity(lambda images, target: images[:, 0], world.images, world.images[:, 0], world.target)
        assert torch.equal(torch.get_rng_state(), before)


class TestShape:
    def test_complexity_and_sparseness_by_hand(self):
        maps = torch.tensor([[[1.0, 1.0, 1.0, 1.0]], [[0.0, 5.0, -9.0, 0.0]], [[1.0, 1.0, -2.0, 0.0]]])
        same(complexity(maps), [1.0, 0.0, 0.5])
        same(sparseness(maps), [0.0, 0.75, 0.5])

    @pytest.mark.parametrize("function", [complexity, sparseness])
    def test_of_nothing_positive_or_something_broken_there_is_no_value(self, function):
        maps = torch.stack([torch.zeros(2, 2), -torch.ones(2, 2), torch.tensor([[1.0, NAN], [0, 0]])])
        assert function(maps).isnan().all()
        assert function(torch.tensor([[[1.0, torch.inf]]])).isnan().all()

    def test_of_a_single_cell(self):
        same(complexity(torch.ones(1, 1, 1)), [0.0])
        same(sparseness(torch.ones(1, 1, 1)), [0.0])

    @calm
    @given(st.integers(0, 9999), st.sampled_from([1e-30, 1e-3, 1e3, 1e30]))
    def test_are_bounded_and_blind_to_scale_and_places(self, seed, scale):
        maps = randn(3, 4, 5, seed=seed)
        order = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
        for function in (complexity, sparseness):
            value = function(maps)
            assert ((value >= 0) & (value <= 1)).all()
            torch.testing.assert_close(function(maps * scale), value, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(function(maps.flatten(1)[:, order].view(3, 4, 5)), value, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("function", [complexity, sparseness])
    def test_have_finite_gradients(self, function):
        maps = randn(2, 3, 3).requires_grad_()
        (gradient,) = torch.autograd.grad(function(maps).sum(), maps)
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


class TestLocalization:
    def test_by_hand(self):
        maps = torch.tensor([[[3.0, 1.0], [-5.0, 0.0]], [[3.0, 1.0], [0.0, 4.0]]])
        masks = torch.tensor([[[True, False], [True, False]]]).expand(2, 2, 2)
        same(relevance_mass(maps, masks), [0.75, 0.375])
        same(pointing_game(maps, masks), [1.0, 0.0])

    def test_odd_input(self):
        maps = torch.stack([torch.zeros(2, 2), torch.ones(2, 2), torch.ones(2, 2), torch.full((2, 2), NAN)])
        masks = torch.zeros(4, 2, 2, dtype=torch.bool)
        masks[[0, 1, 3], 0] = True  # the third is empty
        same(relevance_mass(maps, masks), [NAN, 0.5, NAN, NAN])
        same(pointing_game(maps, masks), [0.0, 0.5, NAN, NAN])

    def test_a_mask_of_everything_and_a_mask_of_numbers(self):
        maps = randn(2, 3, 3).abs()
        same(relevance_mass(maps, torch.ones(2, 10, 11)), [1.0, 1.0])
        same(pointing_game(maps, torch.ones(2, 10, 11).long()), [1.0, 1.0])

    def test_a_coarse_map_falls_into_the_right_quarter(self):
        maps = torch.zeros(1, 4, 4)
        maps[0, 0, 3] = 1.0
        quarter = torch.zeros(1, 64, 64, dtype=torch.bool)
        quarter[:, :32, 32:] = True
        assert float(relevance_mass(maps, quarter)) == pytest.approx(1.0)
        assert float(pointing_game(maps, quarter)) == 1.0


class TestConsensus:
    @calm
    @given(st.integers(0, 9999), st.integers(2, 9))
    def test_is_the_mean_over_pairs_with_different_targets(self, seed, count):
        generator = torch.Generator().manual_seed(seed)
        maps, target = randn(count, 3, 4, seed=seed), torch.randint(0, 3, (count,), generator=generator) * 10**9
        pairs = [
            torch.cosine_similarity(maps[i].clamp(min=0).flatten(), maps[j].clamp(min=0).flatten(), dim=0)
            for i in range(count)
            for j in range(count)
            if target[i] != target[j]
        ]
        value = consensus(maps, target)
        if pairs:
            torch.testing.assert_close(value, torch.stack(pairs).mean(), rtol=1e-4, atol=1e-5)
            order = torch.randperm(count, generator=generator)
            torch.testing.assert_close(consensus(maps[order] * 7, target[order]), value, rtol=1e-4, atol=1e-5)
        else:
            assert value is None

    def test_of_one_place_is_one(self):
        same(consensus(torch.eye(3)[None].expand(4, 3, 3) * 1e-20, torch.arange(4)), 1.0)

    def test_leaves_out_maps_that_say_nothing(self):
        maps = torch.stack([torch.eye(2), torch.eye(2), -torch.eye(2), torch.full((2, 2), NAN)])
        same(consensus(maps, torch.arange(4)), 1.0)
        assert consensus(maps[1:], torch.arange(3)) is None

    def test_of_one_image_or_one_class_is_nothing(self):
        assert consensus(randn(1, 2, 2), torch.tensor([0])) is None
        assert consensus(randn(5, 2, 2), torch.full((5,), 3)) is None
        assert consensus(randn(0, 2, 2), torch.zeros(0, dtype=torch.long)) is None

    def test_null_is_high_where_objects_share_a_place_and_low_where_they_do_not(self):
        centred, scattered = torch.zeros(2, 4, 16, 16, dtype=torch.bool)
        centred[:, 4:12, 4:12] = True
        for i in range(4):
            scattered[i, i // 2 * 8 : i // 2 * 8 + 8, i % 2 * 8 : i % 2 * 8 + 8] = True
        same(consensus_null(centred, torch.arange(4), (4, 4)), 1.0)
        same(consensus_null(scattered, torch.arange(4), (4, 4)), 0.0)
        assert consensus_null(scattered & False, torch.arange(4), (4, 4)) is None


class TestHalfPrecision:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_maps_of_half_precision_give_the_float32_value_of_the_same_numbers(self, world, dtype):
        maps = world.maps.to(dtype)
        for function in (complexity, sparseness):
            assert function(maps).dtype == torch.float32
            assert torch.equal(function(maps), function(maps.float()))
        assert torch.equal(relevance_mass(maps, world.masks), relevance_mass(maps.float(), world.masks))
        assert torch.equal(consensus(maps, world.target), consensus(maps.float(), world.target))
        score, baseline = torch.tensor([1.0, 2, 3, 4, 5]).to(dtype), torch.zeros(5, dtype=dtype)
        expected = completeness_gap(maps.float(), score.float(), baseline.float())
        assert torch.equal(completeness_gap(maps, score, baseline), expected)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_the_model_gets_images_of_its_own_precision(self, world, dtype):
        model, seen = world.model.to(dtype), set()

        def score(images, target):
            seen.add(images.dtype)
            return model(images).gather(1, target[:, None])[:, 0]

        for function in (infidelity, insertion_auc, deletion_auc):
            value = function(score, world.images.to(dtype), world.maps.to(dtype), world.target)
            assert value.dtype == torch.float32
            whole = function(
                lambda x, t: score(x.to(dtype), t), world.images.to(dtype).float(), world.maps.to(dtype), world.target
            )
            torch.testing.assert_close(value, whole, rtol=1e-3, atol=1e-3)
        assert seen == {dtype}


class TestAutocast:
    def test_no_value_loses_digits_inside_autocast(self, world, device):
        draws, index = randn(12, 5, 6, 6), torch.arange(12)[:, None].expand(12, 5)

        def values():
            return [
                infidelity(total, world.images, world.maps, world.target),
                insertion_auc(total, world.images, world.maps, world.target),
                relevance_mass(world.maps, world.masks),
                pointing_game(world.maps, world.masks),
                complexity(world.maps),
                consensus(world.maps, world.target),
                completeness_gap(world.maps, torch.arange(5.0), torch.zeros(5)),
                noise_floor(draws, index),
                *(distance(draws[0], draws[1]) for distance in (rank_drift, ssim_drift, top_iou_drift, centre_shift)),
            ]

        expected = values()
        with torch.autocast(device.type, torch.bfloat16):
            inside = values()
        for ours, value in zip(inside, expected, strict=True):
            assert torch.equal(ours, value)

    @pytest.mark.real("it has no autocast")
    def test_the_model_runs_in_the_precision_around_it(self, world, device):
        seen = set()

        def score(images, target):
            logits = world.model(images)
            seen.add(logits.dtype)
            return logits.gather(1, target[:, None])[:, 0]

        with torch.autocast(device.type, torch.bfloat16):
            infidelity(score, world.images, world.maps, world.target)
        assert seen == {torch.bfloat16}


OK = torch.rand(2, 1, 8, 8), torch.rand(2, 4, 4), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: infidelity(total, OK[0], OK[1][:1], OK[2]), ValueError, "images must have shape"),
        (lambda: infidelity(total, OK[0], torch.rand(2, 9, 4), OK[2]), ValueError, "h <= H"),
        (lambda: infidelity(total, OK[0], torch.rand(2, 1, 4, 4), OK[2]), ValueError, "images must have shape"),
        (lambda: infidelity(total, OK[0], torch.rand(4, 4), OK[2]), ValueError, r"\(B, h, w\)"),
        (lambda: infidelity(total, OK[0].byte(), OK[1], OK[2]), TypeError, "images must be"),
        (lambda: infidelity(total, OK[0], OK[1].long(), OK[2]), TypeError, "floats"),
        (lambda: infidelity(total, OK[0], OK[1], OK[2].float()), TypeError, "class indices"),
        (lambda: infidelity(total, OK[0], OK[1], OK[2][:1]), ValueError, "one class per image"),
        (lambda: infidelity(total, *OK, num_perturbations=0), ValueError, "at least 1"),
        (lambda: infidelity(total, *OK, chunk_size=0), ValueError, "chunk_size"),
        (lambda: infidelity(total, *OK, scores=torch.ones(3)), ValueError, "scores"),
        (lambda: infidelity(total, *OK, replacement=torch.ones(2, 1, 4, 4)), ValueError, "replacement"),
        (lambda: infidelity(lambda x, t: x.sum((2, 3)), *OK), ValueError, "one score per image"),
        (lambda: insertion_auc(total, *OK, num_steps=0), ValueError, "at least 1"),
        (lambda: insertion_auc(lambda x, t: 1.0, *OK), ValueError, "one score per image"),
        (lambda: deletion_auc(total, OK[0][:1], *OK[1:]), ValueError, "images must have shape"),
        (lambda: max_sensitivity(total, *OK), ValueError, "explain function"),
        (lambda: max_sensitivity(total, *OK, radius=-1.0), ValueError, "radius"),
        (lambda: max_sensitivity(total, *OK, num_samples=0), ValueError, "at least 1"),
        (lambda: complexity([[1.0]]), TypeError, "floats"),
        (lambda: complexity(torch.ones(2, 0, 3)), ValueError, r"\(B, h, w\)"),
        (lambda: relevance_mass(OK[1], torch.ones(2, 3, 3)), ValueError, "mask must have shape"),
        (lambda: relevance_mass(OK[1], torch.ones(2, 1, 8, 8)), ValueError, r"mask\[:, 0\]"),
        (lambda: relevance_mass(OK[1], torch.full((2, 8, 8), 3)), ValueError, "zeros and ones"),
        (lambda: pointing_game(OK[1], [[True]]), TypeError, "mask must be a tensor"),
        (lambda: completeness_gap(OK[1], torch.ones(2, 1), torch.ones(2)), ValueError, "score must have shape"),
        (lambda: consensus(OK[1], torch.tensor([0])), ValueError, "one class per image"),
        (lambda: consensus_null(torch.ones(2, 8, 8), OK[2], (4, 4, 4)), ValueError, "mask must have shape"),
        (lambda: class_scores(lambda x: x)(OK[0], OK[2]), ValueError, r"\(N, K\)"),
        (lambda: class_scores(lambda x: x.flatten(1))(OK[0], OK[2] + 64), ValueError, r"\[0, 64\)"),
        (lambda: class_scores(lambda x: x.flatten(1))(OK[0], OK[2] - 1), ValueError, r"\[0, 64\)"),
    ],
)
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_block_effects_reach_only_what_lies_under_the_block(world):
    spot = torch.zeros(5, 16, 16)
    spot[:, 3, 4] = 1.0
    predicted, _ = block_effects(total, world.images, spot, world.target, num_perturbations=40)
    assert torch.equal(predicted[0] > 0, random_blocks((16, 16), 40, 0)[:, 3, 4].to(predicted.device))
