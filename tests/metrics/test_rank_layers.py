"""Layers are ranked by what their maps are worth, and those that cannot be complete are listed with what they miss."""

from __future__ import annotations

import warnings
from dataclasses import asdict

import pytest
import torch
from torch import nn

from egcam_lightning import ExpectedGradCAM, rank_layers
from tests.support.maps import pooled_gap
from tests.support.networks import ResNet, ViT, seeded
from tests.support.pictures import images

MODEL = seeded(ResNet)
SEEN, BASELINES = images(6), images(8, seed=1)


def rows(**kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return rank_layers(MODEL, SEEN, BASELINES, 1, num_samples=8, **kwargs)


def test_the_best_comes_first_and_auto_and_last_are_among_them():
    ranked = rows()
    values = [row.insertion_deletion for row in ranked if row.is_cut]
    assert values == sorted(values, reverse=True)
    assert {"layer1+layer2", "layer2", "layer1"} <= {row.layer for row in ranked}
    assert len({row.layer for row in ranked}) == len(ranked) <= 10


def test_a_row_says_what_the_explainer_gives_there():
    (row,) = rows(layers=["layer1"])
    explanation = ExpectedGradCAM(MODEL, "layer1", num_samples=8)(SEEN, BASELINES, 1)
    assert (row.layer, row.grid, row.is_cut, row.off_grid) == ("layer1", (12, 16), True, 0.0)
    assert row.completeness_gap == pytest.approx(float(pooled_gap(explanation)), abs=1e-6)
    assert 0 <= row.infidelity <= 1
    assert row.seconds > 0


def test_a_layer_that_is_no_cut_is_listed_last_with_its_gap_and_without_a_warning():
    ranked = rows(layers=["layer2.1.bn1", "layer1", ["layer1", "layer2"]])
    assert [row.is_cut for row in ranked] == [True, True, False]
    assert ranked[-1].layer == "layer2.1.bn1"
    assert ranked[-1].completeness_gap > 0.1
    assert "layer1+layer2" in {row.layer for row in ranked}


def test_a_map_that_holds_the_evidence_ranks_before_one_that_has_lost_its_place():
    class Shuffled(nn.Module):
        """The score is the brightness of the middle; behind the first layer it lies in a corner."""

        def __init__(self):
            super().__init__()
            self.seen = nn.Conv2d(3, 3, 1)
            self.moved = nn.Conv2d(3, 3, 1)
            for layer in (self.seen, self.moved):
                nn.init.dirac_(layer.weight)
                nn.init.zeros_(layer.bias)

        def forward(self, x):
            mask = torch.zeros_like(x)
            mask[..., 12:20, 12:20] = 1
            a = (self.seen(x) * mask).roll((12, 12), (2, 3))
            value = self.moved(a).mean((1, 2, 3)) * 40
            return torch.stack([value, -value], 1)

    ranked = rank_layers(Shuffled(), torch.rand(6, 3, 32, 32), torch.rand(8, 3, 32, 32), 0, ["moved", "seen"])
    assert [row.layer for row in ranked] == ["seen", "moved"]
    assert ranked[0].insertion_deletion > ranked[1].insertion_deletion + 0.02
    assert ranked[0].infidelity < 0.5 < ranked[1].infidelity


def test_a_transformer_says_what_its_class_token_carries():
    ranked = rank_layers(seeded(ViT), SEEN, BASELINES, 1, ["blocks.0", "blocks.1"], num_samples=8)
    assert all(row.off_grid > 0.05 for row in ranked)


def test_rows_are_ready_for_a_table_and_leave_the_model_as_it_was():
    before = {key: value.clone() for key, value in MODEL.state_dict().items()}
    state = torch.get_rng_state()
    (row,) = rows(layers=["layer2"])
    assert list(asdict(row))[:3] == ["layer", "grid", "is_cut"]
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in MODEL.state_dict().items())


def test_what_cannot_be_ranked_is_said():
    with pytest.raises(ValueError, match=r"no layer 'layer7'.*Did you mean"):
        rows(layers=["layer7"])
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 32, 5))
    with pytest.raises(ValueError, match=r"No layer of the model has an output with a grid"):
        rank_layers(flat, SEEN, BASELINES, 1)
