"""What one call of the explainer returns, and the mean of several layers' explanations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from egcam_lightning.notebook import SHOWN, heat, plot_pictures, strip

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def to_heatmap(attribution: Tensor, size: tuple[int, ...]) -> Tensor:
    """Turn signed maps into what people look at: the positive part, at the input's size, with maximum 1.

    Args:
        attribution: signed maps of shape ``(B, h, w)`` (or ``(B, d, h, w)`` for volumes).
        size: the input's spatial size, ``(H, W)`` (or ``(D, H, W)``).

    Returns:
        Maps of shape ``(B, *size)`` in [0, 1]; all zero where nothing is positive. Cells not finite count as 0.

    Example:
        >>> import torch
        >>> to_heatmap(torch.tensor([[[-1.0, 2.0]]]), (1, 2))
        tensor([[[0., 1.]]])

    """
    positive = attribution.float().nan_to_num(0.0, 0.0, 0.0).clamp(min=0)
    mode = "trilinear" if len(size) == 3 else "bilinear"
    heatmap = interpolate(positive[:, None], size=size, mode=mode, align_corners=False)[:, 0]
    peak = heatmap.flatten(1).amax(1).view(-1, *[1] * len(size))
    return torch.where(peak > 0, heatmap / peak.clamp(min=torch.finfo(heatmap.dtype).tiny), 0.0)


@dataclass(frozen=True, eq=False)
class Explanation:
    """What one call of the explainer returns. All tensors are detached, float32 and on the inputs' device.

    ``B`` images, ``S`` draws, a layer grid of ``h`` x ``w`` and an input of ``H`` x ``W``; of volumes every grid and
    size has its depth in front, ``(B, d, h, w)`` and ``(B, D, H, W)``.

    Attributes:
        attribution: ``(B, h, w)``, the signed map at the layer's resolution, in units of the score, not normalised.
        heatmap: ``(B, H, W)``, its positive part at the input's size, divided by its maximum.
        target: ``(B,)`` int64, the explained class.
        score: ``(B,)``, the score ``s(x)`` of the image.
        baseline_score: ``(B,)``, the mean of ``s(x')`` over the draws used (NaN where there is no baseline score).
        completeness_gap: ``(B,)``, ``|sum(map) + off_grid - (score - baseline_score)| / |score - baseline_score|``.
            Unbounded where the two scores hardly differ: judge :class:`~egcam_lightning.metrics.CompletenessGap`,
            which pools over images. NaN where there is no baseline score.
        draws: ``(S, B, h, w)``, the signed map of every draw; their mean is ``attribution``.
        baseline_index: ``(S, B)`` int64, the row of the baselines that each draw used (-1 without baselines).
        standard_error: ``(B, h, w)``, the Monte Carlo standard error of ``attribution`` (0 for a single draw).
        off_grid: ``(B,)``, attribution of tokens that have no place on the image; 0 for convolutional networks.
        layer: the resolved name of the target layer.
        prediction: ``(B,)`` int64, the predicted class (-1 where the model predicts no class).

    """

    attribution: Tensor
    heatmap: Tensor
    target: Tensor
    score: Tensor
    baseline_score: Tensor
    completeness_gap: Tensor
    draws: Tensor
    baseline_index: Tensor
    standard_error: Tensor
    off_grid: Tensor
    layer: str
    prediction: Tensor

    @classmethod
    def from_draws(
        cls,
        draws: Tensor,
        off_grid: Tensor,
        *,
        target: Tensor,
        prediction: Tensor,
        score: Tensor,
        baseline_score: Tensor,
        baseline_index: Tensor,
        size: tuple[int, ...],
        layer: str,
    ) -> Explanation:
        """Make an explanation of its draws, ``(S, B, h, w)``, and the rest from them; ``size`` is the images'."""
        attribution = draws.mean(0)
        difference = score - baseline_score
        spread = draws.std(0) if len(draws) > 1 else torch.zeros_like(attribution)
        return cls(
            attribution=attribution,
            heatmap=to_heatmap(attribution, size),
            target=target,
            score=score,
            baseline_score=baseline_score,
            completeness_gap=(attribution.flatten(1).sum(1) + off_grid - difference).abs() / difference.abs(),
            draws=draws,
            baseline_index=baseline_index,
            standard_error=spread / len(draws) ** 0.5,
            off_grid=off_grid,
            layer=layer,
            prediction=prediction,
        )

    @property
    def stability(self) -> Tensor:
        """``(B, h, w)``: ``|mean| / standard error`` of each cell; infinite where the draws all agree."""
        return self.attribution.abs() / self.standard_error

    def plot(self, images: Tensor | None = None) -> tuple[Figure, Any]:
        """Draw the maps of the first eight images with matplotlib.

        Args:
            images: ``(B, H, W, 3)`` uint8, to draw them over (volumes ``(B, D, H, W, 3)``).

        Returns:
            The figure and its axes, one an image, as the ``plot`` of torchmetrics does.

        Example:
            >>> from egcam_lightning import expected_gradcam
            >>> convolution = torch.nn.Conv2d(1, 2, 3, padding=1)
            >>> model = torch.nn.Sequential(convolution, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
            >>> explanation = expected_gradcam(model, torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8))
            >>> figure, axes = explanation.plot()
            >>> len(axes)
            2

        """
        maps = self.attribution if images is not None else self.heatmap
        return plot_pictures(heat(maps[:SHOWN], None if images is None else images[:SHOWN]), self._captions()[:SHOWN])

    def _repr_html_(self) -> str:
        """A strip of the first maps, for notebooks."""
        title = f"{len(self.target)} explanations at layer {self.layer!r}"
        return strip(title, heat(self.heatmap[:SHOWN]), self._captions())

    def _captions(self) -> list[str]:
        pairs = zip(self.target.tolist(), self.score.tolist(), strict=True)
        return [f"class {target}, score {score:.3g}" for target, score in pairs]


def joined(explanations: Sequence[Explanation]) -> Explanation:
    """One explanation of all images, from those of a few at a time, with the same number of draws each."""
    draws = ("draws", "baseline_index")  # of which the images are the second dimension
    parts = {
        field.name: torch.cat([getattr(one, field.name) for one in explanations], int(field.name in draws))
        for field in fields(Explanation)
        if field.name != "layer"
    }
    return Explanation(layer=explanations[0].layer, **parts)


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
