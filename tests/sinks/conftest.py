from __future__ import annotations

import pytest
import torch

from egcam_lightning.history.history import History
from egcam_lightning.pictures.draw import draw
from tests.support.snapshots import make_probe, random_snapshot

N = 3


@pytest.fixture(scope="session")
def history() -> History:
    """Three snapshots of three images; the second image is predicted wrong throughout."""
    labels = torch.tensor([0, 1, 2])
    masks = torch.rand(N, 16, 24, generator=torch.Generator().manual_seed(0)) > 0.5
    probe = make_probe(N, 16, 24, labels=labels, class_names=("cat", "dog", "<b>bird</b>"), masks=masks)
    snapshots = [
        random_snapshot(
            epoch, step, N, (4, 6), drift=step > 0,
            when="epoch" if step else "start", target=labels, prediction=torch.tensor([0, 2, 2]),
            baseline_score=torch.tensor([0.5, torch.nan, 0.25]), metrics={"complexity": 1.0},
        )
        for epoch, step in [(0, 0), (0, 9), (1, 19)]
    ]  # fmt: skip
    return History(probe, tuple(snapshots), "mine")


@pytest.fixture(scope="session")
def drawn(history):
    return [draw(snapshot, history.probe) for snapshot in history.snapshots]


@pytest.fixture(scope="session")
def log_all(history, drawn):
    """Show all snapshots, as the callback does: one after the other, each with the history up to it."""

    def log_all(sink) -> None:
        for k, pictures in enumerate(drawn):
            so_far = History(history.probe, history.snapshots[: k + 1], history.prefix)
            sink.log_snapshot(history.snapshots[k], so_far, pictures)

    return log_all
