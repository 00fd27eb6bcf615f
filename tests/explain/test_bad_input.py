"""Bad input raises before anything is computed, and says what was seen and what to write."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from egcam_lightning.explain import Draws, ExpectedGradCAM, Perturbation
from tests.support.networks import VGG, ResNet, Wrapped, seeded
from tests.support.pictures import images


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise": -0.1}, r"`noise` to be finite and not negative, but got -0.1"),
        ({"noise": float("nan")}, r"`noise` to be finite and not negative, but got nan"),
        ({"noise": float("inf")}, r"`noise` to be finite and not negative, but got inf"),
        ({"interval": (1, 0)}, r"0 <= low <= high <= 1, but got \(1, 0\). Write \(0, 1\)"),
        ({"interval": (0.9, 0.25)}, r"but got \(0.9, 0.25\). Write \(0.25, 0.9\)"),
        ({"interval": (0, 1.5)}, r"0 <= low <= high <= 1, but got \(0, 1.5\)\.$"),
        ({"interval": (0, float("nan"))}, r"0 <= low <= high <= 1, but got \(0, nan\)"),
        ({"interval": (0, 0.5, 1)}, r"two numbers \(low, high\), but got \(0, 0.5, 1\)"),
        ({"interval": 1}, r"two numbers \(low, high\), but got 1"),
        ({"interval": "ab"}, r"two numbers \(low, high\), but got 'ab'"),
        ({"space": "pixels"}, r"`space` to be one of \('activation', 'input'\), but got 'pixels'"),
        ({"baseline": "blur"}, r"`baseline` to be one of \('data', 'zeros', 'none'\), but got 'blur'"),
        ({"weighting": "mean"}, r"`weighting` to be one of \('elementwise', 'channel', .*\), but got 'mean'"),
        ({"baseline": "none"}, r"`interval=\(1, 1\)` with `baseline='none'`, but got \(0.0, 1.0\)"),
    ],
)
def test_perturbations(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Perturbation(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, r"`num_samples` to be a positive integer, but got 0"),
        ({"num_samples": -3}, r"`num_samples` to be a positive integer, but got -3"),
        ({"num_samples": 2.5}, r"`num_samples` to be a positive integer, but got 2.5"),
        ({"chunk_size": 0}, r"`chunk_size` to be a positive integer, but got 0"),
        ({"weighting": "mean"}, r"`weighting` to be one of \('elementwise', 'channel', .*\), but got 'mean'"),
        ({"score": "loss"}, r"`score` to be one of \('logit', .*\), but got 'loss'"),
        ({"seed": -1}, r"`seed` to be an integer from 0 to 2\*\*32 - 1, but got -1"),
    ],
)
def test_explainers(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExpectedGradCAM(seeded(VGG), **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": 5}, r"targets between 0 and 4, .* shape \(3, 5\), but got 5"),
        ({"target": -1}, r"targets between 0 and 4, .*, but got -1"),
        ({"target": torch.tensor([0, 1, 9])}, r"targets between 0 and 4, .*, but got 9"),
        ({"target": torch.tensor([0, 1])}, r"integers of shape \(3,\).* but got torch.int64 of shape \(2,\)"),
        ({"target": torch.tensor([0.0, 1.0, 2.0])}, r"integers of shape \(3,\).* but got torch.float32"),
        ({"target": torch.zeros(3, 5, dtype=torch.long)}, r"integers of shape \(3,\).* but got .* of shape \(3, 5\)"),
        ({"inputs": images(3)[0]}, r"`inputs` of shape \(images, channels, \*size\), but got \(3, 24, 32\)"),
        ({"inputs": images(0)}, r"`inputs` of shape .*, but got \(0, 3, 24, 32\)"),
        ({"baselines": None}, r"`baselines`, images from the training data.*baseline='zeros'"),
        ({"baselines": images(0)}, r"`baselines`, images from the training data"),
        ({"baselines": images(4, size=(24, 24))}, r"`baselines` of .* \(3, 24, 32\), but got \(3, 24, 24\)"),
        ({"image_index": [0, 1]}, r"`image_index` for 3 images, but got 2"),
        ({"draws": (2, 2, 0)}, r"draws for 3 images, but got them for 2"),
        ({"draws": (2, 3, 4)}, r"`baseline_index` between 0 and 3"),
        ({"draws": (2, 3, -1)}, r"`baseline_index` between 0 and 3"),
        ({"draws": (2, 3, 0, (8, 1, 16))}, r"`noise` of .* activation, \(2, 3, 12, 12, 16\), but got \(2, 3, 8, 1, 16"),
    ],
)
def test_calls(arguments: dict[str, Any], message: str) -> None:
    if "draws" in arguments:
        samples, count, row, *noise = arguments["draws"]
        drawn = torch.randn(samples, count, *noise[0]) if noise else None
        arguments = {"draws": Draws(torch.full((samples, count), row), torch.rand(samples, count), drawn)}
    call = {"inputs": images(3), "baselines": images(4, seed=1), "target": 1, **arguments}
    with pytest.raises(ValueError, match=message):
        ExpectedGradCAM(seeded(VGG), "features.4", num_samples=2)(**call)


@pytest.mark.parametrize("layer", ["auto", "model.layer1"])
@pytest.mark.parametrize(
    ("after", "message"),
    [
        (lambda y: y[:, :, None, None].expand(-1, -1, 4, 4), r"\(images, classes\), but it is .* \(3, 5, 4, 4\)"),
        (lambda y: torch.cat([y, y]), r"shape \(3, classes\), but it is a tensor of shape \(6, 5\).*`output_key`"),
        (lambda y: y.mean(), r"shape \(3, classes\), but it is a tensor of shape \(1,\)"),
        (lambda y: {"a": y, "b": y}, r"No logits found .* keys \['a', 'b'\]. Pass `output_key`"),
        (lambda y: "text", r"No logits found in the model's output, which is a str"),
    ],
)
def test_outputs_that_are_no_logits(layer: str, after: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExpectedGradCAM(Wrapped(seeded(ResNet), after), layer, num_samples=2)(images(3), images(4, seed=1), 1)


def test_a_key_that_leads_to_no_tensor() -> None:
    model = Wrapped(seeded(ResNet), lambda y: {"logits": y, "names": ["a"]})
    with pytest.raises(ValueError, match=r"but it is a list of \(a str\). Pass `output_key`"):
        ExpectedGradCAM(model, "model.layer1", output_key="names")(images(3), images(4, seed=1), 1)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda output, target: output, r"one number per image, \(3,\), but got \(3, 5\)"),
        (lambda output, target: output.sum(), r"one number per image, \(\d+,\), but got \(\)"),
        (lambda output, target: 1.0, r"one number per image, \(\d+,\), but got float"),
    ],
)
def test_scores_of_ones_own_that_are_not_one_number_an_image(score: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExpectedGradCAM(seeded(VGG), "features.4", num_samples=1, score=score)(images(3), images(4, seed=1), 1)


def test_a_score_without_a_gradient() -> None:
    def detached(output: Tensor, target: Tensor) -> Tensor:
        return output.detach()[:, 0]

    with pytest.raises(ValueError, match=r"No gradient of the score reaches the layer 'features.4'"):
        ExpectedGradCAM(seeded(VGG), "features.4", score=detached)(images(3), images(4, seed=1), 1)
