"""Showing metrics what they measure: one explanation of a fixed set of images, and the model behind it.

A metric says what it needs by the arguments of its ``update`` and by attributes, as any ``torchmetrics.Metric`` of a
user's own may:

- arguments named ``attribution``, ``target``, ``images``, ``scores``, ``replacement`` (a blurred copy of the images),
  ``mask``, ``score``, ``baseline_score`` or ``off_grid`` are filled in. One that takes images sees the share of its own
  process and is reduced over the processes; any other sees the whole.
- an attribute ``score_fn`` that is ``None`` is set to the explained score, from (images, target) to one number per
  image; with ``uses_probability = True`` to the target's probability, where there is one.
- an attribute ``explain_fn`` that is ``None`` is set to the explainer, from (images, target) to maps.
- beside either function ``target`` holds no classes but the numbers by which the function knows the images: to be
  repeated and reordered with them, and handed on.
- ``takes_input_type = True`` beside it asks for images in the type that the model takes, not in floats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torchmetrics import Metric

from egcam_lightning.metrics.functional import blurred

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False, kw_only=True)
class Evidence:
    """What metrics are shown.

    Attributes:
        images: ``(n, C, H, W)``, this process's own share, as the model takes them.
        attribution: ``(n, h, w)``, their maps.
        target: ``(n,)`` int64.
        scores: ``(n,)``.
        whole: what metrics are shown of all images, by the name of the argument.
        score_fn: from images, the rows of the share that they take the place of, and whether to give probabilities, to
            one number per image.
        explain_fn: from images and the rows of the share that they take the place of to maps.

    """

    images: Tensor
    attribution: Tensor
    target: Tensor
    scores: Tensor
    whole: Mapping[str, Tensor]
    score_fn: Callable[[Tensor, Tensor, bool], Tensor]
    explain_fn: Callable[[Tensor, Tensor], Tensor]


def evaluate(
    metrics: Mapping[str, Metric],
    evidence: Evidence,
    run_or_raise_everywhere: Callable[[Callable[[], None]], None],
) -> tuple[dict[str, float], dict[str, Exception]]:
    """Measure an explanation.

    Args:
        metrics: by key.
        evidence: what they are shown.
        run_or_raise_everywhere: does work of this process, and raises where it fails in another.

    Returns:
        The value of each metric, and what those that failed raised: left out, in every process alike.

    """
    images, own = evidence.images, len(evidence.images)
    share = {
        "images": images.float(),
        "attribution": evidence.attribution,
        "target": evidence.target,
        "scores": evidence.scores,
    }
    # All metrics that blur the images share one blurred copy.
    if own and any("replacement" in metric._filter_kwargs(replacement=0) for metric in metrics.values()):
        share["replacement"] = blurred(share["images"])
    # A metric repeats and reorders images and targets alike. So one that asks the model is given rows for targets, by
    # which the targets, the model's other inputs and a segmentation's regions are found again.
    rows = torch.arange(own, device=images.device)
    values: dict[str, float] = {}
    failures: dict[str, Exception] = {}
    for key, metric in metrics.items():
        takes_images = "images" in metric._filter_kwargs(**share)
        arguments = metric._filter_kwargs(**(share if takes_images else evidence.whole))
        score_fn = partial(_score, evidence.score_fn, getattr(metric, "uses_probability", False))
        functions: dict[str, Callable[..., Tensor]] = {"score_fn": score_fn, "explain_fn": evidence.explain_fn}
        unset = [name for name in functions if getattr(metric, name, 0) is None]  # unless the user gave one
        if unset:
            arguments["target"] = rows
        if "explain_fn" in unset and getattr(metric, "takes_input_type", False):
            arguments["images"] = images
        for name in unset:
            setattr(metric, name, functions[name])
        try:
            metric._to_sync = takes_images  # setting `sync_on_compute` has no effect once it is made
            device = images.device if takes_images else torch.device("cpu")
            update = partial(_update, metric, device, arguments if own or not takes_images else None)
            if takes_images:
                run_or_raise_everywhere(update)
            else:
                update()
            values[key] = float(metric.compute())
            metric.reset()
        except Exception as problem:
            failures[key] = problem
        finally:
            metric._to_sync = metric.sync_on_compute
            for name in unset:  # the metric outlives the fit; the model need not
                setattr(metric, name, None)
    return values, failures


def _score(
    function: Callable[[Tensor, Tensor, bool], Tensor], probability: bool, images: Tensor, rows: Tensor
) -> Tensor:
    return function(images, rows, probability)


def _update(metric: Metric, device: torch.device, arguments: Mapping[str, Any] | None) -> None:
    """Show a metric what it measures; ``None`` where this process has no image of its own."""
    metric.reset()
    metric.to(device)
    if arguments is not None:
        metric.update(**arguments)
