"""Explaining the probe a few images at a time, where the maps of all their draws would take too much memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from egcam_lightning.explain import ExpectedGradCAM
from egcam_lightning.explain.captured import rows_of
from egcam_lightning.explain.explanation import Explanation, joined
from egcam_lightning.metrics import functional as F

# Cells of the maps of all draws: 64 MB. The maps of 16 images and 32 draws fit on grids of up to 181 x 181.
_CELLS = 2**24


def explain_few_at_once(
    explainer: ExpectedGradCAM,
    inputs: Sequence[Tensor],
    baselines: Tensor,
    targets: Tensor | None,
    image_index: Sequence[int],
    seed: int,
) -> tuple[Explanation, Tensor | None]:
    """Explain images whose layer has been found.

    Args:
        explainer: the explainer.
        inputs: what the model takes, a row per image; the images first.
        baselines: ``(R, C, H, W)``.
        targets: a row per image, or ``None``.
        image_index: an index for each image, by which its draws are made.
        seed: seed of the noise floor's splits.

    Returns:
        The explanation, without its draws where they do not all fit, and the noise floor of each image, if it has one.

    """
    cells = explainer.num_samples * math.prod(explainer.grid or (1,))
    few = max(1, _CELLS // cells) if explainer.score.takes_some_images else len(inputs[0])
    parts: list[Explanation] = []
    floors: list[Tensor | None] = []
    count = len(inputs[0])
    for start in range(0, count, few):
        part = slice(start, start + few)
        images, *others = rows_of(inputs, part)
        found = explainer(
            images,
            baselines,
            None if targets is None else targets[part],
            additional_forward_args=tuple(others),
            image_index=image_index[part],
        )
        floors.append(F.noise_floor(found.draws, found.baseline_index, seed=seed))
        parts.append(found if few >= count else replace(found, draws=found.draws[:0].clone()))
    if len(parts) == 1:
        return parts[0], floors[0]
    whole = joined(parts)
    if all(floor is None for floor in floors):
        return whole, None
    unknown = [torch.full_like(one.score, torch.nan) for one in parts]
    return whole, torch.cat([u if floor is None else floor for floor, u in zip(floors, unknown, strict=True)])
