"""What a checkpoint held of a run is taken whole, or told of and left."""

from __future__ import annotations

import pytest
import torch

from egcam_lightning import ExpectedGradCAMCallback


@pytest.mark.parametrize("part", ["probe", "baselines", "snapshots", "schedule", "owed", "version"])
@pytest.mark.parametrize("damage", [torch.zeros(3), 97, [object()]], ids=["a tensor", "a number", "a list"])
def test_a_state_damaged_in_any_way_is_told_of_and_stops_nothing(part, damage):
    callback = ExpectedGradCAMCallback(num_images=2)
    state = {**callback.state_dict(), part: damage}
    with pytest.warns(UserWarning, match="The history starts afresh; training is not affected"):
        callback.load_state_dict(state)
    assert len(callback.history) == 0
