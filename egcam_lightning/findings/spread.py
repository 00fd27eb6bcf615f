"""What the images of a class share: their border, their colours, what they have in common, a piece that they repeat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from egcam_lightning.findings.examples import EXAMPLES, examples
from egcam_lightning.findings.interventions import Deal, Pasting, Pool, effect_of, log_odds
from egcam_lightning.findings.kinds import SPREAD, weight
from egcam_lightning.findings.records import Spread
from egcam_lightning.findings.repeats import repeated_pieces
from egcam_lightning.findings.sentences import LEAST_IN_COMMON
from egcam_lightning.findings.windows import Windows

BORDER = 3 / 32  # of an image's shorter side
# What a shortcut on half of a class's images does to their mean is half of what it is.
OVERLAID = 2.0
# Of the number of audited images: how many are changed, and as many for the control. What counts from less is measured
# on more.
_MEASURED = {"border": 3 / 16, "colour": 3 / 16, "overlay": 3 / 16, "repeat": 3 / 8}
_LEAST_MEASURED = 16
_LEAST_TRIED = 2
_PROMISING = 3  # classes that are tried once more
_MOST_MEASURED = 4  # classes of each kind


class Changes:
    """Changes other images by what the images of a class share.

    Args:
        own: the images that are audited.
        windows: of those of them whose borders and colours serve, one an image: what says most for its class.
        rise: ``(n,)``, how much it does.
        group: ``(N,)`` int64, which class each audited image is of.
        groups: how many classes there are.
        masks: ``(N, H, W)`` bool, where the objects are, which are left out of it; ``None`` where that is not known.

    Attributes:
        tested: the classes that some of the images that serve are of.
        in_common: those of enough images to see what these have in common.

    """

    def __init__(
        self, own: Pool, windows: Windows, rise: Tensor, group: Tensor, groups: int, masks: Tensor | None
    ) -> None:
        images, image = own.images, windows.image
        order = group[image].argsort(stable=True)
        self._images, self._rows = images, image[order]
        self._size = torch.bincount(group[image], minlength=groups)
        self._first = self._size.cumsum(0) - self._size
        self._range = (*(edge((0, 2, 3), keepdim=True).float() for edge in (images.amin, images.amax)),)
        self._outside = (
            torch.ones_like(images[:, :1], dtype=torch.float32) if masks is None else (~masks[:, None]).float()
        )
        self.tested = self._size.nonzero().flatten()
        enough = torch.bincount(group, minlength=groups) >= LEAST_IN_COMMON
        self.in_common = (enough & (self._size > 0)).nonzero().flatten()
        if len(self.in_common):
            self._overlay = self._differences(group)
        self._pieces, self._where = repeated_pieces(images, windows, rise, group[image], groups, self._outside)

    def _differences(self, group: Tensor) -> Tensor:
        """``(k, C, H, W)``: of each class with enough images the difference of their mean from that of the others."""
        means, known = [], []
        for one in self.in_common:
            outside = self._outside[group == one]
            weight = outside.sum(0)
            means.append((self._images[group == one].float() * outside).sum(0) / weight.clamp(min=1))
            known.append(weight >= LEAST_IN_COMMON)  # hardly anything is where the objects nearly always are
        mean, seen = torch.stack(means), torch.stack(known)
        mean = mean * seen
        rest = (mean.sum(0) - mean) / (seen.sum(0) - 1).clamp(min=1)
        return torch.where(seen, mean - rest, 0)

    def images_of(self, group: Tensor, generator: torch.Generator) -> Tensor:
        """``(m,)``: rows of images drawn of some classes ``(m,)``."""
        chance = torch.rand(len(group), generator=generator).to(group.device)
        return self._rows[self._first[group] + (chance * self._size[group]).long()]

    def made(self, kind: str, group: Tensor, source: Tensor, onto: Tensor) -> Tensor:
        """``(m, C, H, W)``: images changed by what is of a class ``(m,)``, or of one image of it ``(m,)``."""
        if kind == "overlay":
            overlay = self._overlay[torch.searchsorted(self.in_common, group)]
            return self._as_pixels(onto.float() + OVERLAID * overlay)
        if kind == "repeat":
            return torch.where(self._where[group], self._as_pixels(self._pieces[group]), onto)
        images, outside = self._images[source], self._outside[source]
        if kind == "border":
            return torch.where(outside > 0, with_border_of(images, onto), onto)
        return self._as_pixels(with_colours_of(images, onto, outside))

    def control_of(self, kind: str, group: Tensor, other: Tensor, source: Tensor, onto: Tensor) -> Tensor:
        """What :meth:`made` is compared with: the same by other classes ``(m,)``, or by one image of these ``(m,)``.

        A piece is compared with what another image holds there: whatever covers a part of an image may turn it.
        """
        if kind == "repeat":
            return torch.where(self._where[group], self._images[source], onto)
        return self.made(kind, other, source, onto)

    def _as_pixels(self, values: Tensor) -> Tensor:
        """In the images' range, and of their type."""
        images = values.clamp(*self._range)
        return (images if self._images.is_floating_point() else images.round()).to(self._images.dtype)


def others_of(classes: Tensor, group: Tensor, generator: torch.Generator) -> Tensor:
    """Draw classes from ``(k,)``, sorted, at least two: for each of ``(m,)`` another than itself.

    Example:
        >>> others_of(torch.tensor([2, 5]), torch.tensor([2, 5, 2]), torch.Generator())
        tensor([5, 2, 5])

    """
    step = torch.randint(1, len(classes), (len(group),), generator=generator).to(group.device)
    return classes[(torch.searchsorted(classes, group) + step) % len(classes)]


def with_border_of(source: Tensor, onto: Tensor) -> Tensor:
    """Images with the border of others.

    Args:
        source: ``(n, C, H, W)``, whose border it is.
        onto: ``(n, C, H, W)``, what lies inside.

    Example:
        >>> framed = with_border_of(torch.ones(1, 1, 32, 32), torch.zeros(1, 1, 32, 32))
        >>> framed[0, 0, 16, :4].tolist()
        [1.0, 1.0, 1.0, 0.0]

    """
    height, width = onto.shape[2:]
    rim = max(1, round(BORDER * min(height, width)))
    framed = source.clone()
    framed[..., rim : height - rim, rim : width - rim] = onto[..., rim : height - rim, rim : width - rim]
    return framed


def with_colours_of(source: Tensor, onto: Tensor, weight: Tensor | None = None) -> Tensor:
    """Images with the mean and the covariance that the colours of others have, by a linear map of their channels.

    Colour transfer (Reinhard et al., 2001), with the covariance instead of each channel's deviation, so that the grey
    of grey images is one of their colours.

    Args:
        source: ``(n, C, H, W)``, whose colours these are.
        onto: ``(n, C, H, W)``, what is shown in them.
        weight: ``(n, 1, H, W)``, how much each pixel of the source counts; ``None`` for all alike.

    Returns:
        ``(n, C, H, W)`` float32, which may leave the range of pixels.

    Example:
        >>> grey = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)).expand(1, 3, 8, 8)
        >>> shown = with_colours_of(grey, torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
        >>> bool((shown[0, 0] - shown[0, 1]).abs().max() < 0.05)
        True

    """
    everywhere = torch.ones_like(onto[:, :1], dtype=torch.float32)
    mean, root, _ = _colours(source, everywhere if weight is None else weight)
    centre, _, inverse = _colours(onto, everywhere)
    flat = onto.float().flatten(2) - centre
    return (root @ (inverse @ flat) + mean).view_as(onto)


def _colours(images: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mean ``(n, C, 1)`` of an image's channels, the root of their covariance ``(n, C, C)``, and its inverse."""
    flat, weight = images.float().flatten(2), weight.flatten(2)
    weight = weight / weight.sum(2, keepdim=True).clamp(min=1)
    mean = (flat * weight).sum(2, keepdim=True)
    flat = flat - mean
    value, vector = (part.to(flat) for part in torch.linalg.eigh(((flat * weight) @ flat.mT).cpu().double()))
    # Channels that go together cannot be told apart: what little they differ by is not blown up.
    value = value.clamp(min=1e-3 * value.amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny))
    root = value.sqrt()[:, None]
    return mean, (vector * root) @ vector.mT, (vector / root) @ vector.mT


@dataclass(frozen=True, eq=False)
class Trials:
    """Tries changes on images of other classes.

    Attributes:
        pasting: asks the model.
        deal: deals the images that are changed.
        others: those that are dealt.
        changes: of the classes.
        generator: draws images and classes, on the CPU.

    """

    pasting: Pasting
    deal: Deal
    others: Pool
    changes: Changes
    generator: torch.Generator

    def most_promising(self, kind: str, candidates: Tensor, count: int) -> Tensor:
        """Classes ``(k,)``, those first whose log-odds rise most by a change in a few images each.

        Args:
            kind: of the change.
            candidates: ``(k,)``, the classes.
            count: how many images are changed, at most: half of them by all classes, the rest by the best of these.

        """
        few = max(_LEAST_TRIED, count // (2 * len(candidates)))
        order = candidates[self._rise(kind, candidates, few).argsort(descending=True)]
        best, rest = order[:_PROMISING], order[_PROMISING:]
        again = self._rise(kind, best, max(_LEAST_TRIED, count // (2 * len(best))))
        return torch.cat([best[again.argsort(descending=True)], rest])

    def _rise(self, kind: str, candidates: Tensor, count: int) -> Tensor:
        """``(k,)``: how much the log-odds of classes rise in the mean over ``count`` images of others."""
        row, onto = self.deal.draw(candidates, count, fresh=False)
        of = candidates[row]
        logits = self._ask(kind, of, self.changes.images_of(of, self.generator), onto)
        rise = log_odds(logits, self.deal.target[of]) - log_odds(self.others.logits[onto], self.deal.target[of])
        total = torch.zeros(len(candidates), device=rise.device).index_add_(0, row, rise)
        return total / torch.bincount(row, minlength=len(candidates)).clamp(min=1)

    def measured(
        self, kind: str, one: Tensor, candidates: Tensor, count: int, class_names: Sequence[str] | None
    ) -> Spread | None:
        """What a change does of one class, ``()``, beside others of the candidates; ``None`` without fresh images."""
        row, onto = self.deal.draw(one[None], count, fresh=True)
        if not len(row):
            return None
        target, of = self.deal.target[one], one.repeat(len(row))
        source = self.changes.images_of(of, self.generator)
        turned = self._ask(kind, of, source, onto).argmax(1) == target
        other = others_of(candidates, of, self.generator)
        theirs = self.changes.images_of(other, self.generator)
        controls = self.pasting.changed(
            onto,
            lambda rows, images: self.changes.control_of(kind, of[rows], other[rows], theirs[rows], images),
        )
        by_others = controls.argmax(1) == target
        shown = turned.nonzero().flatten()[:EXAMPLES]
        after = self.changes.made(kind, of[shown], source[shown], self.others.images[onto[shown]])
        pastes = examples(self.others, onto[shown], after, [0] * len(shown), class_names)
        return Spread(kind, effect_of(turned, by_others), pastes)

    def _ask(self, kind: str, of: Tensor, source: Tensor, onto: Tensor) -> Tensor:
        return self.pasting.changed(onto, lambda rows, images: self.changes.made(kind, of[rows], source[rows], images))


def spread_effects(
    pasting: Pasting,
    deal: Deal,
    own: Pool,
    others: Pool,
    windows: Windows,
    rise: Tensor,
    group: Tensor,
    generator: torch.Generator,
    masks: Tensor | None,
    class_names: Sequence[str] | None,
) -> dict[int, tuple[Spread, ...]]:
    """What that which the images of a class share does to images of other classes.

    Each change of each class is tried on a few images. The class whose log-odds rise most by it is measured on fresh
    images, beside the same change by images of other classes; where that is large, the next class is, up to four.

    Args:
        pasting: asks the model.
        deal: deals the images that are changed.
        own: the audited images.
        others: those that are dealt.
        windows: of the audited images that the model gets right, one an image.
        rise: ``(n,)``, how much the log-odds of its class rose by each.
        group: ``(N,)`` int64, which of the deal's classes each audited image is of.
        generator: draws images and classes, on the CPU.
        masks: ``(N, H, W)`` bool, where the objects are; ``None`` where that is not known.
        class_names: a name for each class.

    Returns:
        For each class that was measured what was, by its place among the deal's; of fewer than two classes nothing,
        since there is no control.

    """
    changes = Changes(own, windows, rise, group, len(deal.target), masks)
    trials = Trials(pasting, deal, others, changes, generator)
    count = len(own.images)
    tried = count // len(SPREAD)
    found: dict[int, tuple[Spread, ...]] = {}
    for kind in SPREAD:
        candidates = changes.in_common if kind == "overlay" else changes.tested
        if len(candidates) < 2:  # there is no control
            continue
        measured = max(_LEAST_MEASURED, round(_MEASURED[kind] * count))
        for one in trials.most_promising(kind, candidates, tried)[:_MOST_MEASURED]:
            effect = trials.measured(kind, one, candidates, measured, class_names)
            if effect is None:
                break
            found[int(one)] = (*found.get(int(one), ()), effect)
            if weight(kind, effect.capture.excess) <= 1:
                break
    return found
