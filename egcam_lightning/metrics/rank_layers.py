"""Choosing a layer for oneself: what each layer of a trained network would give, best first."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from egcam_lightning.explain.candidates import Candidate, observe, outermost
from egcam_lightning.explain.estimator import ExpectedGradCAM
from egcam_lightning.explain.isolation import isolated
from egcam_lightning.metrics.faithfulness import faithfulness


@dataclass(frozen=True)
class RankedLayer:
    """What explaining at one layer gave.

    Attributes:
        layer: its name, to be passed as ``target_layer``; of several their names, as ``"first+second"``.
        grid: ``(h, w)`` of its maps (``(d, h, w)`` of volumes).
        is_cut: whether nothing bypasses it, so that its maps can be complete.
        insertion_deletion: mean insertion AUC - deletion AUC; higher is better.
        insertion_deletion_error: standard error of that mean over the images.
        infidelity: mean infidelity, in [0, 1]; lower is better.
        completeness_gap: pooled over the images; 0 is complete.
        off_grid: share of the attribution that has no place on the image.
        seconds: how long explaining took.

    """

    layer: str
    grid: tuple[int, ...]
    is_cut: bool
    insertion_deletion: float
    insertion_deletion_error: float
    infidelity: float
    completeness_gap: float
    off_grid: float
    seconds: float


def rank_layers(
    model: nn.Module,
    images: Tensor,
    baselines: Tensor,
    target: Tensor | int | None = None,
    layers: Sequence[str | nn.Module | Sequence[str]] | None = None,
    *,
    max_layers: int = 8,
    **kwargs: Any,
) -> list[RankedLayer]:
    """Explain images of a trained model at each of several layers, and judge the maps.

    For a network that has learned something: maps of an untrained one explain nothing, and their order is noise. So is
    that of layers whose values lie within their errors of each other.

    Cost: per layer an explanation and 36 forward passes an image.

    Args:
        model: the model.
        images: ``(B, C, H, W)``, as the model takes them; some dozens.
        baselines: ``(R, C, H, W)``, images from the training data.
        target: ``(B,)`` int64, one class for all, or ``None`` for the predicted class.
        layers: names, modules, or lists of them for the mean over several; ``None`` for ``"auto"``, ``"last"`` and the
            layers with a grid, the deepest of each grid first, and of others as many as ``max_layers`` allows.
        max_layers: how many layers are tried where ``layers`` is not given.
        **kwargs: any other argument of :class:`~egcam_lightning.ExpectedGradCAM`, such as ``num_samples``.

    Returns:
        A row a layer, the best insertion - deletion first; layers that are no cut of the network come last.
        ``pandas.DataFrame(rows)`` makes a table of them.

    Raises:
        ValueError: where the model has no layer with a grid, or not the one that was asked for.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(
        ...     nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        ...     nn.Flatten(), nn.Linear(8, 10),
        ... )
        >>> rows = rank_layers(model, torch.rand(4, 3, 32, 32), torch.rand(8, 3, 32, 32), num_samples=8)
        >>> sorted(row.layer for row in rows)
        ['0', '1', '1+3', '2', '3']

    """
    first = ExpectedGradCAM(model, "auto", **kwargs)
    first.find(images)  # says what is wrong with a model that has no layer to offer
    if layers is None:
        with isolated(model, seed=first.seed):
            candidates, _, _ = observe(model, first.forward, images[:4].detach())
        layers = ["auto", "last", *(c.name for c in _telling(candidates, max_layers))]
    ranked: dict[str, RankedLayer] = {}
    for layer in layers:
        explainer = ExpectedGradCAM(model, list(layer) if isinstance(layer, (list, tuple)) else layer, **kwargs)
        if explainer.find(images) not in ranked:
            row = _judge(explainer, images, baselines, target)
            ranked[row.layer] = row
    return sorted(ranked.values(), key=lambda row: (not row.is_cut, -row.insertion_deletion))


def _telling(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """The deepest layer of each grid, and of the others some that lie evenly in between."""
    distinct = outermost(candidates)
    deepest = list({c.layout.grid: c for c in distinct}.values())[-count:]
    others = [c for c in distinct if c not in deepest]
    wanted = min(count - len(deepest), len(others))
    even = [others[(2 * i + 1) * len(others) // (2 * wanted)] for i in range(wanted)]
    return [c for c in distinct if c in deepest or c in even]


def _judge(explainer: ExpectedGradCAM, images: Tensor, baselines: Tensor, target: Tensor | int | None) -> RankedLayer:
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a layer that is no cut is told of in its row
        explanation = explainer(images, baselines, target)
    seconds = time.perf_counter() - start
    values = faithfulness(explainer, images, explanation)
    gained = values["insertion_auc"] - values["deletion_auc"]
    off_grid, placed = explanation.off_grid, explanation.attribution.flatten(1).sum(1).abs()
    return RankedLayer(
        layer=explanation.layer,
        grid=tuple(explanation.attribution.shape[1:]),
        is_cut=explainer.is_fast(images),
        insertion_deletion=float(gained.mean()),
        insertion_deletion_error=float(gained.std() / len(images) ** 0.5) if len(images) > 1 else float("nan"),
        infidelity=float(values["infidelity"].mean()),
        completeness_gap=float(values["missing"].sum() / values["difference"].sum()),
        off_grid=float(off_grid.abs().sum() / (off_grid.abs() + placed).sum()),
        seconds=seconds,
    )
