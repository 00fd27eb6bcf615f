from __future__ import annotations

import pytest
import torch

from egcam_lightning.history.history import History
from egcam_lightning.history.records import ProbeImages, Snapshot
from egcam_lightning.pictures.draw import draw

N = 3


@pytest.fixture(scope="session")
def history() -> History:
    """Three snapshots of three images; the second image is predicted wrong throughout."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1, 2])
    probe = ProbeImages(
        images=torch.randint(0, 256, (N, 16, 24, 3), generator=generator).to(torch.uint8),
        labels=labels,
        class_names=("cat", "dog", "<b>bird</b>"),
        restored=True,
        masks=torch.rand(N, 16, 24, generator=generator) > 0.5,
    )
    snapshots = []
    for epoch, step in [(0, 0), (0, 9), (1, 19)]:
        drift = torch.rand(N, generator=generator) if snapshots else None
        snapshots.append(
            Snapshot(
                epoch=epoch,
                step=step,
                when="epoch" if snapshots else "start",
                layer="layer4",
                baselines=1,
                attribution=torch.randn(N, 4, 6, generator=generator),
                target=labels,
                prediction=torch.tensor([0, 2, 2]),
                score=torch.rand(N, generator=generator),
                baseline_score=torch.tensor([0.5, torch.nan, 0.25]),
                completeness_gap=torch.rand(N, generator=generator) / 10,
                off_grid=torch.zeros(N),
                drift_previous=drift,
                drift_reference=drift,
                noise_floor=drift,
                metrics={"complexity": 1.0},
            )
        )
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
