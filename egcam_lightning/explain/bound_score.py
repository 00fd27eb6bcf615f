"""The explained score of whatever takes the place of images, for the metrics that ask the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from egcam_lightning.explain.captured import rows_of
from egcam_lightning.explain.scores import OutputScore, check_score, in_float


def bound_score(
    forward: Callable[..., Any], score: OutputScore, images: Tensor, target: Tensor, others: Sequence[Any]
) -> Callable[[Tensor, Tensor, bool], Tensor]:
    """See :meth:`ExpectedGradCAM.bind <egcam_lightning.ExpectedGradCAM.bind>`."""
    output = images
    if score.looks_at_images:
        with torch.no_grad():
            output = in_float(forward(images, *others))
    bound = [each.bind(output, target) for each in (score, score.shown)]

    def scores(points: Tensor, rows: Tensor, probability: bool) -> Tensor:
        output = in_float(forward(points, *rows_of(others, rows)))
        return check_score(bound[probability](output, rows), len(points))

    return scores
