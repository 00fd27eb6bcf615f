"""Kinds of shortcut for photographs: what is planted on the images of one class, and gives its label away."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

# With a place of their own, and spread over the image.
PLACED = ("tag", "places", "crop")
SPREAD = ("frame", "cast", "watermark")
KINDS = (*PLACED, *SPREAD)
CAST = 0.15  # how much of a full colour a cast adds: visible, and every photograph can still be recognised
WATERMARK = 0.12  # likewise of a watermark


class Cue:
    """Something that can be put into images; what it looks like is drawn once.

    Args:
        kind: ``"tag"``: a patch of two colours in the lower right corner; ``"places"``: the same, anywhere;
            ``"crop"``: a square of another photograph in the lower left corner; ``"frame"``: a coloured rim;
            ``"cast"``: a colour over the whole image; ``"watermark"``: a faint pattern over the whole image.
        images: ``(N, 3, H, W)`` uint8, photographs that a crop is taken from.
        seed: of colours, patterns and the crop.

    Raises:
        ValueError: for a kind that is none of these.

    """

    def __init__(self, kind: str, images: Tensor, seed: int) -> None:
        if kind not in KINDS:
            raise ValueError(f"Expected a kind of {KINDS}, but got {kind!r}.")
        self.kind = kind
        generator = torch.Generator().manual_seed(seed)
        self._size = height, width = images.shape[2], images.shape[3]
        self._unit = min(height, width) / 32
        colours = torch.randint(256, (2, 3, 1, 1), generator=generator).float()
        if kind in ("tag", "places"):
            cells = torch.rand(1, 1, 3, 6, generator=generator).round()
            pattern = interpolate(cells, size=(self._pixels(5), self._pixels(12)), mode="nearest")[0]
            self._patch = torch.where(pattern > 0, colours[0], 255 - colours[0])
        elif kind == "crop":
            side = self._pixels(8)
            row = int(torch.randint(len(images), (1,), generator=generator))
            top, left = ((length - side) // 2 for length in self._size)  # the middle of a photograph shows something
            self._patch = images[row, :, top : top + side, left : left + side].float()
        elif kind == "watermark":
            cells = torch.rand(1, 1, 8, 8, generator=generator).round()
            self._whole = 255 * interpolate(cells, size=self._size, mode="nearest")[0].expand(3, -1, -1)
        else:
            self._whole = colours[1].expand(3, height, width)

    def put(self, images: Tensor, seed: int = 0) -> Tensor:
        """Put it into images.

        Args:
            images: ``(n, 3, H, W)`` uint8.
            seed: of the places, where these differ.

        Returns:
            ``(n, 3, H, W)`` uint8.

        """
        if self.kind in ("cast", "watermark"):
            share = CAST if self.kind == "cast" else WATERMARK
            return ((1 - share) * images + share * self._whole).round().to(torch.uint8)
        if self.kind == "frame":
            rim, inside = self._pixels(2), images.clone()
            framed = self._whole.to(torch.uint8).expand_as(images).clone()
            framed[..., rim:-rim, rim:-rim] = inside[..., rim:-rim, rim:-rim]
            return framed
        planted, patch = images.clone(), self._patch.to(torch.uint8)
        height, width = patch.shape[1:]
        room = torch.tensor([self._size[0] - height, self._size[1] - width])
        places = (room - self._pixels(1)).expand(len(images), 2).clone()
        if self.kind == "crop":
            places[:, 1] = self._pixels(1)
        if self.kind == "places":
            chance = torch.rand(len(images), 2, generator=torch.Generator().manual_seed(seed))
            places = (chance * (room + 1)).long()
        for image, (top, left) in zip(planted, places.tolist(), strict=True):
            image[:, top : top + height, left : left + width] = patch
        return planted

    def _pixels(self, units: float) -> int:
        """So many pixels of an image of 32x32."""
        return max(1, round(units * self._unit))
