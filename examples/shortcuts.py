"""Kinds of shortcut, planted on the digits: something else than the digit gives the label away."""

from __future__ import annotations

import torch
from digits import SIZE, TAG_COLOURS, DigitsData, DigitsOnTexture, tag_mask
from torch import Tensor

SHORTCUTS = ("tag", "frame", "places", "cast")
FRAME = 3
CAST = 0.2  # how much of a full colour a cast adds: visible, and every digit can still be read


def shortcut_masks(kind: str, count: int, generator: torch.Generator) -> Tensor:
    """Where a shortcut is, in each of ``count`` images.

    Args:
        kind: ``"tag"``: the lower right corner; ``"frame"``: the rim of the image; ``"places"``: one of the four
            corners, whatever the label; ``"cast"``: everywhere, and so nowhere in particular.
        count: how many images.
        generator: draws the corner.

    Returns:
        ``(count, SIZE, SIZE)`` bool.

    Raises:
        ValueError: for a kind that is none of these.

    """
    if kind not in SHORTCUTS:
        raise ValueError(f"kind is {kind!r}: expected one of {SHORTCUTS}.")
    corner = tag_mask()
    if kind == "tag":
        return corner.expand(count, -1, -1)
    if kind == "places":
        corners = torch.stack([corner, corner.flip(0), corner.flip(1), corner.flip(0, 1)])
        return corners[torch.randint(4, (count,), generator=generator)]
    whole = torch.ones(SIZE, SIZE, dtype=torch.bool)
    if kind == "frame":
        whole[FRAME:-FRAME, FRAME:-FRAME] = False
    return whole.expand(count, -1, -1)


class PlantedDigits(DigitsOnTexture):
    """The digits, with a shortcut of one kind whose colour gives the label away.

    Args:
        split: ``"train"`` or ``"val"``.
        copies: how often each digit is there.
        kind: see :func:`shortcut_masks`; ``None`` plants nothing.
        seed: what images and places are drawn with.

    Attributes:
        bare: the images without the shortcut, ``(N, 3, SIZE, SIZE)`` uint8.
        planted: where the shortcut is, ``(N, SIZE, SIZE)`` bool; ``None`` without one.

    """

    def __init__(self, split: str, copies: int = 1, kind: str | None = None, seed: int = 0) -> None:
        super().__init__(split, copies, seed=seed)
        self.bare = self.images
        self.planted: Tensor | None = None
        if kind is None:
            return
        generator = torch.Generator().manual_seed(2 * seed + (split == "val"))
        self.planted = shortcut_masks(kind, len(self), generator)
        colour = TAG_COLOURS[self.labels][:, :, None, None]
        if kind == "cast":
            self.images = (self.bare + CAST * (colour.float() - 127.5)).round().clamp(0, 255).to(torch.uint8)
        else:
            self.images = torch.where(self.planted[:, None], colour, self.bare)
            self.masks = self.masks & ~self.planted


class PlantedData(DigitsData):
    """The digits with a shortcut of one kind, in training and validation, as Lightning wants them.

    Args:
        kind: see :func:`shortcut_masks`; ``None`` plants nothing.
        copies: how often each digit is in an epoch.
        seed: what images and their order are drawn with.

    """

    def __init__(self, kind: str | None, copies: int, seed: int) -> None:
        super().__init__(copies=copies, seed=seed)
        self.train = PlantedDigits("train", copies, kind, seed)
        self.val = PlantedDigits("val", 1, kind, seed)

    def setup(self, stage: str | None = None) -> None:
        """The images are there already."""
