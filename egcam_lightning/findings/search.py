"""Which window of an image says most for its class: looked for on its map, and then by what a few pastes say."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from egcam_lightning.explain.auto_layers import deepest_of_side
from egcam_lightning.explain.candidates import observe
from egcam_lightning.explain.estimator import ExpectedGradCAM
from egcam_lightning.explain.layer_search import telling_sample
from egcam_lightning.findings.interventions import Deal, Pasting, Pool, log_odds
from egcam_lightning.findings.windows import Windows, strongest

# Height and width of the windows, as shares of the image's shorter side: lying and standing, 3/32 of a square image.
SHAPES = ((1 / 4, 3 / 8), (3 / 8, 1 / 4))
PLACES = 2  # of each shape, in each image
# Successive halving: one image in so many of each class goes on, with so many more pastes each.
_ROUNDS = ((2, 1), (5, 2))
FINALISTS = 10  # one window in so many is left
_FINE_SIDE = 16


def fine_layer(explainer: ExpectedGradCAM, images: Tensor) -> nn.Module | None:
    """The last layer that nothing bypasses and whose grid is at least 16x16, in a network without a class token.

    The last layer of all, which explains best what a network sees, does not say where well enough for a window: behind
    it lies most of the image. Measured on CIFAR-10 and a ResNet-20 (5 horses with a tag of 12x5 in a corner, which
    turns 52 % of other images into horses; 2 draws): of all windows of that size 7 to 63 % hold more of the map of the
    last stage (8x8) than that which lies on the tag, of the stage before (16x16) 1 to 23 %, of the first (32x32) 1 to
    2 %, at twice the cost.

    Args:
        explainer: of the model.
        images: ``(n, C, H, W)``; the first few are used.

    Returns:
        The layer, or ``None`` where there is none: the explainer's own has to do.

    """
    sample, _ = telling_sample(images)
    candidates, _, _ = observe(explainer.model, explainer.forward, sample)
    found = deepest_of_side(candidates, explainer.forward, sample, _FINE_SIDE)
    return None if found is None else found.module


@dataclass(frozen=True, eq=False)
class Search:
    """Looks for the windows that say most for their class.

    What counts is how much the log-odds of the class rise in images that they are pasted into, which tells windows
    apart by fewer pastes than whether the model's call turns.

    Attributes:
        pasting: does it.
        deal: deals the images that windows are pasted into.
        own: the audited images.
        others: those that are dealt.

    """

    pasting: Pasting
    deal: Deal
    own: Pool
    others: Pool

    def window_of_each(self, maps: Tensor, image: Tensor, group: Tensor) -> tuple[Windows, Tensor]:
        """The best of the windows where a map has most, each pasted into one image of another class.

        Args:
            maps: ``(n, H, W)``, signed, of some of the audited images, at their size.
            image: ``(n,)``, of which.
            group: ``(n,)``, which of the deal's classes each is of.

        Returns:
            A window an image, and how much the log-odds rose by it.

        """
        places = [window for shape in SHAPES for window in strongest(maps, image, shape, PLACES)]
        row, other = self.deal.draw(group, 1, fresh=False)
        rise, best = torch.stack([self._rise(place[row], other) for place in places]).max(0)
        return places[0].picked_from(places[1:], best), rise

    def strongest(self, windows: Windows, rise: Tensor, group: Tensor) -> tuple[Windows, Tensor]:
        """Those that say most for each class: one in ten, and three at least.

        The promising ones of each class are pasted into more images, the best of these into still more.

        Args:
            windows: n of them.
            rise: ``(n,)``, what one paste of each did.
            group: ``(n,)``, which of the deal's classes each is of.

        Returns:
            Windows, by class, and which of the deal's classes each is of.

        """
        size, pastes = torch.bincount(group), torch.ones_like(rise)
        for divide, more in _ROUNDS:
            left = top_of_each(rise / pastes, group, size, divide)
            windows, group, rise, pastes = windows[left], group[left], rise[left], pastes[left]
            row, other = self.deal.draw(group, more, fresh=False)
            rise = rise.index_add(0, row, self._rise(windows[row], other))
            pastes = pastes + torch.bincount(row, minlength=len(pastes))
        left = top_of_each(rise / pastes, group, size, FINALISTS)
        return windows[left], group[left]

    def _rise(self, windows: Windows, other: Tensor) -> Tensor:
        target = self.own.label[windows.image]
        return log_odds(self.pasting.into_others(windows, other), target) - log_odds(self.others.logits[other], target)


def top_of_each(value: Tensor, group: Tensor, size: Tensor, divide: int, least: int = 3) -> Tensor:
    """The rows with the largest values of each group.

    Args:
        value: ``(n,)``.
        group: ``(n,)`` int64.
        size: ``(k,)``, how large each group was at first.
        divide: one in so many of that goes on, rounded up.
        least: but at least so many, where there are.

    Returns:
        Rows, by group, the largest value first.

    Example:
        >>> value, group, size = torch.tensor([1.0, 3.0, 2.0, 5.0]), torch.tensor([0, 0, 0, 1]), torch.tensor([3, 1])
        >>> top_of_each(value, group, size, 2, least=1)
        tensor([1, 2, 3])

    """
    order = value.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    here = torch.bincount(group, minlength=len(size))
    rank = torch.arange(len(value), device=value.device) - (here.cumsum(0) - here)[group[order]]
    most = ((size + divide - 1) // divide).clamp(min=least)[group[order]]
    return order[rank < most]
