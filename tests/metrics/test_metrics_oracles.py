"""Every number against code that others wrote, on the same maps and perturbations."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch.nn.functional import interpolate

from egcam_lightning.metrics.functional import (
    block_effects,
    blurred,
    class_scores,
    complexity,
    deletion_auc,
    infidelity,
    insertion_auc,
    max_sensitivity,
    pointing_game,
    random_blocks,
    relevance_mass,
    sparseness,
)

pytestmark = pytest.mark.cpu("these libraries are given arrays and a model on the CPU")


def quantus_values(metric: str, world: Any, maps: torch.Tensor, **options: Any) -> torch.Tensor:
    import quantus

    call = {key: options.pop(key) for key in ("s_batch", "softmax") if key in options}
    judge = getattr(quantus, metric)(
        abs=False, normalise=False, disable_warnings=True, display_progressbar=False, **options
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = judge(
            model=world.model,
            x_batch=world.images.numpy(),
            y_batch=world.target.numpy(),
            a_batch=maps[:, None].numpy().copy(),
            device="cpu",
            **call,
        )
    return torch.tensor(values, dtype=torch.float32)


def captum_infidelity(world: Any, maps: torch.Tensor, *, normalize: bool, num: int = 24, seed: int = 3) -> torch.Tensor:
    from captum.metrics import infidelity as judge

    blocks = random_blocks((16, 16), num, seed)[:, None].repeat(5, 1, 1, 1)
    smooth = blurred(world.images).repeat_interleave(num, 0)
    # 16 / 4 is a whole number, so that plain bilinear interpolation over the cell's 16 pixels keeps the total too.
    pixels = interpolate(maps[:, None], size=(16, 16), mode="bilinear", align_corners=False) / 16
    return judge(
        world.model,
        lambda images: (blocks.float(), torch.where(blocks, smooth, images)),
        world.images,
        pixels,
        target=world.target,
        n_perturb_samples=num,
        normalize=normalize,
    )


def test_infidelity_without_scale_is_captums(world):
    ours = infidelity(
        class_scores(world.model),
        world.images,
        world.maps,
        world.target,
        num_perturbations=24,
        normalize=False,
        seed=3,
        chunk_size=7,
    )
    torch.testing.assert_close(ours, captum_infidelity(world, world.maps, normalize=False), rtol=1e-4, atol=1e-6)


def test_infidelity_with_scale_is_captums_over_the_mean_square_except_that_the_scale_is_not_negative(world):
    predicted, drop = block_effects(
        class_scores(world.model), world.images, world.maps, world.target, num_perturbations=24, seed=3
    )
    aligned = world.maps * torch.sign((predicted * drop).sum(1))[:, None, None]
    expected = captum_infidelity(world, aligned, normalize=True) / drop.square().mean(1)
    options = {"num_perturbations": 24, "seed": 3}
    ours = infidelity(class_scores(world.model), world.images, aligned, world.target, **options)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)
    assert (ours < 0.999).any()
    # captum calls an inverted map as good as the map itself; ours is never better than an empty one.
    torch.testing.assert_close(captum_infidelity(world, -aligned, normalize=True) / drop.square().mean(1), expected)
    inverted = infidelity(class_scores(world.model), world.images, -aligned, world.target, **options)
    torch.testing.assert_close(inverted, torch.ones(5))


def test_max_sensitivity_is_captums_with_the_same_noise(world):
    from captum.metrics import sensitivity_max

    def explain(images, target):
        return (images[:, 0] * images[:, 0].roll(1, 2)).sin() * (1 + target.view(-1, 1, 1))

    noise = torch.empty(6, 1, 16, 16).uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(5))
    expected = sensitivity_max(
        # A tuple in, a tuple out, as captum's own attribution methods do.
        lambda images, target: (explain(*images, target),) if isinstance(images, tuple) else explain(images, target),
        world.images,
        perturb_func=lambda images: images + noise.repeat(5, 1, 1, 1),
        n_perturb_samples=6,
        target=world.target,
    )
    ours = max_sensitivity(
        explain,
        world.images,
        explain(world.images, world.target),
        world.target,
        radius=0.1,
        num_samples=6,
        seed=5,
        chunk_size=4,
    )
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["deletion", "insertion"])
def test_deletion_and_insertion_are_the_midpoints_of_quantus_pixel_flipping(world, name):
    score = class_scores(world.model, softmax=True)
    black = torch.zeros_like(world.images)
    function, sign = (deletion_auc, 1) if name == "deletion" else (insertion_auc, -1)
    ours = function(score, world.images, world.fine_maps, world.target, num_steps=16, replacement=black, chunk_size=3)
    # Inserting the most relevant pixels first is deleting the least relevant ones, seen from the other end.
    curve = quantus_values(
        "PixelFlipping", world, sign * world.fine_maps, features_in_step=8, perturb_baseline=0.0, softmax=True
    )
    torch.testing.assert_close(ours, curve[:, 0::2].mean(1), rtol=1e-4, atol=1e-5)
    # Quantus integrates the curve by trapezoids; with pixels one by one both tend to the same integral.
    fine = function(score, world.images, world.fine_maps, world.target, num_steps=256, replacement=black)
    curve = quantus_values(
        "PixelFlipping", world, sign * world.fine_maps, features_in_step=1, perturb_baseline=0.0, softmax=True
    )
    torch.testing.assert_close(fine, torch.trapezoid(curve, dx=1 / 255), rtol=0, atol=5e-3)


def test_complexity_is_quantus_over_the_largest_entropy(world):
    positive = world.fine_maps.clamp(min=0)
    expected = quantus_values("Complexity", world, positive) / torch.tensor(256.0).log()
    torch.testing.assert_close(complexity(world.fine_maps), expected, rtol=1e-4, atol=1e-6)


def test_sparseness_is_quantus(world):
    expected = quantus_values("Sparseness", world, world.fine_maps.clamp(min=0))
    torch.testing.assert_close(sparseness(world.fine_maps), expected, rtol=1e-4, atol=1e-6)


def test_relevance_mass_is_quantus(world):
    masks = world.masks[:, None].numpy()
    expected = quantus_values("RelevanceMassAccuracy", world, world.fine_maps.clamp(min=0), s_batch=masks)
    torch.testing.assert_close(relevance_mass(world.fine_maps, world.masks), expected, rtol=1e-4, atol=1e-6)


def test_pointing_game_is_quantus_where_the_peak_is_unique(world):
    masks = world.masks[:, None].numpy()
    expected = quantus_values("PointingGame", world, world.fine_maps, s_batch=masks)
    ours = pointing_game(world.fine_maps, world.masks)
    torch.testing.assert_close(ours, expected)
    assert set(ours.tolist()) == {0.0, 1.0}
    # Where pixels tie for the peak Quantus calls one inside a hit; ours is the chance of one.
    tied, halves = world.fine_maps.clone(), world.masks.clone()
    tied[:, 0, :2] = 99.0
    halves[:, 0, 0], halves[:, 0, 1] = True, False
    assert quantus_values("PointingGame", world, tied, s_batch=halves[:, None].numpy()).tolist() == [1.0] * 5
    assert pointing_game(tied, halves).tolist() == [0.5] * 5


def test_blur_is_torchvisions(world):
    from torchvision.transforms.functional import gaussian_blur

    images = torch.cat([world.images, world.images.flip(2)], 1)
    torch.testing.assert_close(blurred(images), gaussian_blur(images, [11, 11], [1.6, 1.6]), rtol=1e-5, atol=1e-6)
