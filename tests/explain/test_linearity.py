"""Behind a linear part of the network the gradient is the same everywhere, and no draw needs a pass of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear

import egcam_lightning.explain.path_gradients
from egcam_lightning import ExpectedGradCAM, Perturbation
from egcam_lightning.explain.linearity import is_linear
from egcam_lightning.explain.split_model import SplitModel
from tests.support.networks import CLASSES, seeded
from tests.support.pictures import images

WEIGHT = nn.Parameter(torch.randn(CLASSES, 8, generator=torch.Generator().manual_seed(3)))


class WithHead(nn.Module):
    """Features ``(N, 8, 6, 8)`` as in no other network, because every test brings its head."""

    def __init__(self, head: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU())
        self.weight = WEIGHT
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


LINEAR = {
    "pooled": lambda a: linear(a.mean((2, 3)), WEIGHT, torch.ones(CLASSES)),
    "adaptive": lambda a: linear(nn.AdaptiveAvgPool2d(1)(a).flatten(1), WEIGHT),
    "adaptive to more": lambda a: linear(nn.AdaptiveAvgPool2d(2)(a).sum((2, 3)), WEIGHT),
    "averaged": lambda a: linear(nn.AvgPool2d(2)(a).flatten(2).mean(2), WEIGHT),
    "transposed": lambda a: linear(a.flatten(2).transpose(1, 2).mean(1), WEIGHT),
    "product of matrices": lambda a: a.mean((2, 3)) @ WEIGHT.T,
}
NOT_LINEAR = {
    "relu": lambda a: linear((a - 1).relu().mean((2, 3)), WEIGHT),
    "maximum": lambda a: linear(a.amax((2, 3)), WEIGHT),
    "largest pooled": lambda a: linear(nn.AdaptiveMaxPool2d(1)(a).flatten(1), WEIGHT),
    "normalised": lambda a: linear(layer_norm(a.mean((2, 3)), (8,)), WEIGHT),
    "squared": lambda a: linear((a * a).mean((2, 3)), WEIGHT),
    "gated": lambda a: linear((a * (a > 0.5)).mean((2, 3)), WEIGHT),
    "weighed out of sight": lambda a: linear((a * a.detach()).mean((2, 3)), WEIGHT),
    "frozen": lambda a: linear(a.mean((2, 3)), WEIGHT.detach()),
    "gated by the bias": lambda a: torch.addmm(a.mean((2, 3))[:, :CLASSES].tanh(), a.mean((2, 3)), WEIGHT.T),
}


def run(head: Callable[[Tensor], Tensor], **kwargs: Any) -> tuple[Any, int]:
    """The explanation, and how many points went through the head with a gradient."""
    count = 0
    model = seeded(lambda: WithHead(head))
    from_points = SplitModel.from_points

    def counting(self: SplitModel, points: Tensor, *args: Any) -> Any:
        nonlocal count
        count += len(points) if torch.is_grad_enabled() else 0
        return from_points(self, points, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SplitModel, "from_points", counting)
        explainer = ExpectedGradCAM(model, "features.3", num_samples=12, **kwargs)
        return explainer(images(3), images(4, seed=1), torch.tensor([1, 4, 2])), count


@pytest.mark.parametrize("head", LINEAR.values(), ids=LINEAR)
@pytest.mark.parametrize("perturbation", [Perturbation.expected(), Perturbation(baseline="zeros", weighting="channel")])
def test_a_linear_head_takes_one_gradient_an_image_and_gives_the_same_maps(
    head: Callable[[Tensor], Tensor], perturbation: Perturbation, monkeypatch: pytest.MonkeyPatch
) -> None:
    short, few = run(head, perturbation=perturbation)
    monkeypatch.setattr(egcam_lightning.explain.path_gradients, "is_linear", lambda *_: False)
    long, many = run(head, perturbation=perturbation)
    assert few <= 4 < 36 <= many  # one per image; 12 draws of 3 images
    for name in ("attribution", "score", "baseline_score", "off_grid"):
        torch.testing.assert_close(getattr(short, name), getattr(long, name), rtol=1e-4, atol=1e-6)
    # Along a path there is nothing to integrate, so that each draw is its path's whole map.
    for draws, index in ((short.draws, short.baseline_index), (long.draws, long.baseline_index)):
        for row in range(int(index.max()) + 1):
            of_row = (index == row)[..., None, None]
            expected = (short.draws * of_row).sum(0) / of_row.sum(0)
            torch.testing.assert_close((draws * of_row).sum(0) / of_row.sum(0), expected, rtol=1e-4, atol=1e-6)
    assert (short.standard_error <= long.standard_error + 1e-6).all()
    assert torch.equal(short.baseline_index, long.baseline_index)


@pytest.mark.parametrize("head", NOT_LINEAR.values(), ids=NOT_LINEAR)
def test_what_is_not_linear_or_cannot_be_told_takes_every_draw(head: Callable[[Tensor], Tensor]) -> None:
    _, count = run(head)
    assert count >= 36


@pytest.mark.parametrize("score", ["log_probability", "probability", "margin", lambda output, target: output[:, 0]])
def test_a_score_that_is_not_known_to_be_linear_takes_every_draw(score: Any) -> None:
    _, count = run(LINEAR["pooled"], score=score)
    assert count >= 36


def test_chunks_change_nothing() -> None:
    whole, _ = run(LINEAR["pooled"])
    parts, _ = run(LINEAR["pooled"], chunk_size=2)
    torch.testing.assert_close(parts.draws, whole.draws)


def test_one_chunk_that_is_not_linear_makes_the_whole_take_every_draw() -> None:
    def head(a: Tensor) -> Tensor:
        pooled = a.mean((2, 3))
        return linear(pooled.tanh() if bool((pooled[:, 0] > threshold).any()) else pooled, WEIGHT)

    with torch.no_grad():
        first = seeded(lambda: WithHead(LINEAR["pooled"])).features(images(3)).mean((2, 3))[:, 0]
    threshold = float(first[0])
    assert bool((first > threshold).any()), "the first image is linear, another one is not"
    ours, count = run(head, chunk_size=1)
    assert count >= 36
    assert ours.draws.shape[:2] == (12, 3)


def test_a_branch_that_the_images_do_not_take_is_not_taken_for_linear() -> None:
    """Every image lies on one side of it, every baseline on the other: the record at an image is linear."""

    def head(a: Tensor) -> Tensor:
        pooled = a.mean((2, 3))
        return linear(pooled if bool((pooled.sum(1) > threshold).all()) else pooled.square(), WEIGHT)

    model = seeded(lambda: WithHead(head))
    inputs, baselines = images(3) * 2, images(4, seed=1) / 4
    with torch.no_grad():
        light, dark = (model.features(x).mean((2, 3)).sum(1) for x in (inputs, baselines))
    threshold = float(light.min() + dark.max()) / 2
    assert light.min() > threshold > dark.max()
    explainer = ExpectedGradCAM(model, "features.3", num_samples=12, chunk_size=1)
    short = explainer(inputs, baselines, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(egcam_lightning.explain.path_gradients, "is_linear", lambda *_: False)
        long = explainer(inputs, baselines, 1)
    torch.testing.assert_close(short.draws, long.draws, rtol=1e-4, atol=1e-6)


def test_what_the_record_does_not_show_is_not_taken_for_linear() -> None:
    leaf, other = torch.rand(2, 8, requires_grad=True), torch.rand(2, 8, requires_grad=True)
    assert is_linear(linear(leaf, WEIGHT), leaf)
    assert not is_linear(linear(other, WEIGHT), leaf), "another leaf"
    assert is_linear(torch.addmm(torch.ones(5), leaf, WEIGHT.T), leaf), "a bias without a gradient"
    assert not is_linear(torch.addmm(leaf[:, :5].tanh(), leaf, WEIGHT.T), leaf), "a bias that is computed from it"
    assert not is_linear(leaf @ other.T, leaf), "a factor that is no parameter may depend on anything"
    assert not is_linear(linear(leaf, WEIGHT * leaf.detach().mean()), leaf), "weights that depend on the values"
    assert not is_linear(linear(leaf, WEIGHT)[:, [int(leaf.detach().sum(0).argmax()) % 2]], leaf), "a place that does"
    assert not is_linear(torch.ones(2, 2), leaf), "no record at all"
