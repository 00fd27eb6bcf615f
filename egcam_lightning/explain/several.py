"""Explanations at several layers, brought together into one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from egcam_lightning.snapshot import Explanation


def mean_over_layers(explanations: Sequence[Explanation]) -> Explanation:
    """The mean of explanations of the same images at several layers, on the finest of their grids.

    A map that is brought to a finer grid keeps its sum, so that the mean of complete maps is complete.

    Args:
        explanations: one a layer, of the same images, targets and number of draws.

    Returns:
        One explanation; its ``layer`` names them all.

    """
    first = explanations[0]
    grid = max((tuple(e.attribution.shape[1:]) for e in explanations), key=lambda g: torch.Size(g).numel())
    draws = torch.stack([_spread(e.draws, grid) for e in explanations]).mean(0)
    off_grid = torch.stack([e.off_grid for e in explanations]).mean(0)
    return Explanation.from_draws(
        draws,
        off_grid,
        target=first.target,
        prediction=first.prediction,
        score=first.score,
        baseline_score=first.baseline_score,
        baseline_index=first.baseline_index,
        size=tuple(first.heatmap.shape[1:]),
        layer="+".join(e.layer for e in explanations),
    )


def _spread(draws: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Maps ``(S, B, h, w)`` on a finer grid, each with the sum it had."""
    if tuple(draws.shape[2:]) == grid:
        return draws
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(grid)]
    fine = interpolate(draws.flatten(0, 1)[:, None], size=grid, mode=mode, align_corners=False)[:, 0]
    # Interpolation keeps the mean only where cells divide evenly: the part that it loses is spread over all cells.
    lost = draws.flatten(0, 1).flatten(1).sum(1) - fine.flatten(1).sum(1) * _ratio(draws, grid)
    fine = fine * _ratio(draws, grid) + (lost / torch.Size(grid).numel()).view(-1, *[1] * len(grid))
    return fine.view(*draws.shape[:2], *grid)


def _ratio(draws: Tensor, grid: tuple[int, ...]) -> float:
    return torch.Size(draws.shape[2:]).numel() / torch.Size(grid).numel()
