"""Whatever the architecture, `target_layer="auto"` takes a layer that one would choose, and the map lies in its place.

Only a patch in the middle of one quadrant tells an image from its baseline, so that the attribution lies there: a map
that is flipped, transposed, shifted by a class token or read in the wrong layout does not.
"""

from __future__ import annotations

import warnings

import pytest
from torch import Tensor

from egcam_lightning import ExpectedGradCAM, Explanation
from egcam_lightning.explain.split_model import SplitModel, host_image_like
from tests.architectures.zoo import ARCHITECTURES, Architecture, make
from tests.support.scenes import in_place, patched

NAMES = [name if a.cheap else pytest.param(name, marks=pytest.mark.slow) for name, a in ARCHITECTURES.items()]


def explain(architecture: Architecture) -> tuple[SplitModel, Tensor, Explanation]:
    noise, images, _ = patched(architecture.side)
    model = make(architecture)
    explainer = ExpectedGradCAM(model, "last", num_samples=8, score=architecture.score)
    explanation = explainer(images, noise, 1)
    layer = model.get_submodule(explanation.layer)
    return SplitModel(layer, explanation.layer, explainer.forward), images, explanation


@pytest.mark.parametrize("name", NAMES)
def test_last_is_the_layer_that_one_would_choose_and_its_map_is_in_place(name: str) -> None:
    architecture = ARCHITECTURES[name]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(cut of the network|No layer)")
        cut, images, explanation = explain(architecture)
    assert explanation.layer == architecture.layer
    maps = explanation.attribution
    assert in_place(maps)
    for turned in (maps.flip(1), maps.flip(2), maps.transpose(1, 2)):
        assert not in_place(turned)
    # The fast path holds, on images that the explainer has not asked about in this way.
    activation, output = cut.capture(images[:4])
    assert cut.holds(activation, output, host_image_like(images, seed=7))
    wanted = explanation.score - explanation.baseline_score
    found = maps.flatten(1).sum(1) + explanation.off_grid
    # Eight draws are few for a head of several layers; where something bypasses the layer, the gap is about 1.
    assert (found - wanted).abs().sum() <= 0.2 * wanted.abs().sum()


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_over_layers_that_auto_takes_is_in_place_and_complete(name: str) -> None:
    architecture = ARCHITECTURES[name]
    noise, images, _ = patched(architecture.side)
    explainer = ExpectedGradCAM(make(architecture), num_samples=8, score=architecture.score)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(cut of the network|No layer)")
        explanation = explainer(images, noise, 1)
    assert architecture.layer in explanation.layer.split("+")
    maps = explanation.attribution
    assert in_place(maps)
    for turned in (maps.flip(1), maps.flip(2), maps.transpose(1, 2)):
        assert not in_place(turned)
    wanted = explanation.score - explanation.baseline_score
    found = maps.flatten(1).sum(1) + explanation.off_grid
    # The median: an untrained EfficientNet answers some of the noise images by thousands, which no eight draws follow.
    assert ((found - wanted).abs() / wanted.abs()).median() <= 0.2
