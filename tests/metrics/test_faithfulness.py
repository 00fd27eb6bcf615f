"""Estimates of how faithful maps are: the metrics' own values, with intervals that hold what they should."""

from __future__ import annotations

import pytest
import torch

from egcam_lightning import ExpectedGradCAM
from egcam_lightning.metrics import CompletenessGap, DeletionAUC, Infidelity, InsertionAUC
from egcam_lightning.metrics.faithfulness import estimate, estimate_faithfulness
from egcam_lightning.metrics.functional import class_scores
from tests.support.networks import ResNet, seeded
from tests.support.pictures import images

MODEL = seeded(ResNet)
SEEN, BASELINES = images(6), images(8, seed=1)


@pytest.fixture(scope="module")
def explainer():
    return ExpectedGradCAM(MODEL, "layer1", num_samples=4)


def test_the_values_are_those_of_the_metrics(explainer):
    found = {one.key: one for one in estimate_faithfulness(explainer, SEEN, BASELINES, None)}
    explanation = explainer(SEEN, BASELINES)
    maps, target = explanation.attribution, explanation.target
    gap = CompletenessGap()
    gap.update(maps, explanation.score, explanation.baseline_score)
    assert found["completeness_gap"].mean == pytest.approx(float(gap.compute()), abs=1e-6)
    for key, metric in (
        ("infidelity", Infidelity(class_scores(MODEL))),
        ("insertion_auc", InsertionAUC(class_scores(MODEL, softmax=True))),
        ("deletion_auc", DeletionAUC(class_scores(MODEL, softmax=True))),
    ):
        metric.update(SEEN, maps, target)
        assert found[key].mean == pytest.approx(float(metric.compute()), abs=1e-5)
        assert found[key].low <= found[key].mean <= found[key].high
        assert found[key].num_images == len(SEEN)


def test_of_a_hundred_intervals_about_ninety_five_hold_the_value():
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(400, 32, generator=generator)
    weights = torch.rand(400, 32, generator=generator) + 0.5
    for truth, found in (
        (0.5, [estimate("infidelity", one) for one in values]),
        (0.5, [estimate("completeness_gap", a, b) for a, b in zip(values * weights, weights, strict=True)]),
    ):
        held = sum(one.low <= truth <= one.high for one in found if one is not None)
        assert 0.91 <= held / len(found) <= 0.97


def test_images_without_a_value_are_left_out_and_of_one_nothing_is_said():
    values = torch.tensor([1.0, 2.0, torch.nan, torch.inf, 3.0])
    assert estimate("infidelity", values) == estimate("infidelity", values[[0, 1, 4]])
    assert estimate("infidelity", values[:1]) is None
    assert estimate("completeness_gap", torch.zeros(3), torch.zeros(3)) is None
