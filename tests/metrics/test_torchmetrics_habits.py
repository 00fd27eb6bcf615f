"""Metrics are torchmetrics': they go into a collection and into its wrappers, and draw themselves.

Each has one value, so that wrappers of values by class or by output do not apply.
"""

from __future__ import annotations

from typing import Any

import matplotlib

matplotlib.use("Agg")

import pytest
import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.wrappers import BootStrapper, MinMaxMetric, Running

from egcam_lightning.metrics import (
    CompletenessGap,
    Complexity,
    DeletionAUC,
    Infidelity,
    InsertionAUC,
    PointingGame,
    RelevanceMass,
    Sparseness,
)


def score(images: Tensor, target: Tensor) -> Tensor:
    return torch.sigmoid(images.mean((1, 2, 3)) * 4 + target)


def batch(seed: int, count: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    total = torch.rand(count, generator=generator)
    return {
        "images": torch.rand(count, 3, 16, 16, generator=generator),
        "attribution": torch.rand(count, 4, 4, generator=generator) - 0.3,
        "target": torch.zeros(count, dtype=torch.long),
        "mask": torch.rand(count, 16, 16, generator=generator) > 0.5,
        "score": total,
        "baseline_score": total - 1,
    }


def metrics() -> dict[str, Any]:
    return {
        "insertion_auc": InsertionAUC(score, num_steps=4),
        "deletion_auc": DeletionAUC(score, num_steps=4),
        "infidelity": Infidelity(score, num_perturbations=4),
        "completeness_gap": CompletenessGap(),
        "complexity": Complexity(),
        "sparseness": Sparseness(),
        "relevance_mass": RelevanceMass(),
        "pointing_game": PointingGame(),
    }


def asked_for(metric: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    return metric._filter_kwargs(**given)


def test_a_collection_gives_each_what_it_asks_for() -> None:
    together = MetricCollection(metrics(), prefix="egcam/")
    together.update(**batch(0))
    found = together.compute()
    assert set(found) == {f"egcam/{name}" for name in metrics()}
    for name, metric in metrics().items():
        metric.update(**asked_for(metric, batch(0)))
        torch.testing.assert_close(found[f"egcam/{name}"], metric.compute())


@pytest.mark.parametrize("name", metrics())
def test_bootstrapping_gives_a_spread_around_the_value(name: str, device: torch.device) -> None:
    metric = metrics()[name]
    given = asked_for(metric, batch(1, 24))
    torch.manual_seed(0)
    wrapped = BootStrapper(metric, num_bootstraps=8, sampling_strategy="multinomial").to(device)
    wrapped.update(**given)
    found = wrapped.compute()
    alone = metrics()[name]
    alone.update(**given)
    assert found["std"] > 0
    assert abs(found["mean"] - alone.compute()) < 4 * found["std"] + 1e-6


@pytest.mark.parametrize("name", metrics())
def test_a_running_value_is_that_of_the_last_batches(name: str) -> None:
    running, alone = Running(metrics()[name], window=2), metrics()[name]
    for seed in range(4):
        running.update(**asked_for(alone, batch(seed)))
    for seed in (2, 3):
        alone.update(**asked_for(alone, batch(seed)))
    torch.testing.assert_close(running.compute(), alone.compute())


@pytest.mark.parametrize("name", metrics())
def test_the_best_and_the_worst_are_kept(name: str) -> None:
    tracked, values = MinMaxMetric(metrics()[name]), []
    for seed in range(3):
        tracked.update(**asked_for(metrics()[name], batch(seed)))
        values.append(float(tracked.compute()["raw"]))
        tracked._base_metric.reset()
    assert float(tracked.min_val) == pytest.approx(min(values))
    assert float(tracked.max_val) == pytest.approx(max(values))


@pytest.mark.parametrize("name", metrics())
def test_a_metric_draws_itself(name: str) -> None:
    metric = metrics()[name]
    metric.update(**asked_for(metric, batch(0)))
    figure, axes = metric.plot()
    low, high = axes.get_ylim()
    assert low <= float(metric.compute()) <= high
    figure.clear()
