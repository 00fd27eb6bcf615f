"""From maps to pictures: what is shown of a snapshot, drawn once whatever the number of loggers.

Everything that leaves this module is a uint8 array of shape ``(H, W, 3)``, the one form that every logger takes
without rescaling it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from egcam_lightning.explain.explanation import to_heatmap
from egcam_lightning.history.records import ProbeImages, Snapshot
from egcam_lightning.pictures.volumes import flatten_maps, take_slices

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

Array = np.ndarray[Any, np.dtype[np.uint8]]

# Pictures are enlarged by a whole factor until their longer side has this many pixels, and shrunk to the other.
SMALLEST, LARGEST = 128, 384

HEAT_LEVELS = {1: "heat above 25 %", 2: "heat above 50 %", 3: "heat above 75 %", 4: "against, above 50 %"}

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)

_GAP = 4

_MARGIN = 12

_NARROWEST = 330

_LEGEND = "Each panel: the picture, the evidence for what is explained, and the signed map (red for, blue against)."

_TOP, _BELOW = 58, 60

_INK, _PALE, _RIGHT, _WRONG = (32, 32, 32), (110, 110, 110), (0, 110, 60), (190, 30, 20)


@dataclass(frozen=True, eq=False)
class Pictures:
    """A snapshot as people see it: ``N`` images, or slices of volumes, at a display size of ``H`` x ``W``.

    Attributes:
        panels: ``N`` arrays ``(H, 3 * W + 8, 3)`` uint8: the picture, the heat over it, and the signed map.
        captions: ``N`` lines of text: what was predicted, what is explained, its score, the gap, epoch and step.
        pictures: ``N`` arrays ``(H, W, 3)`` uint8, the plain pictures.
        blended: ``N`` arrays ``(H, W, 3)`` uint8, the pictures in grey with the heat over them.
        levels: ``N`` arrays ``(H, W)`` uint8, the heat in the steps that :data:`HEAT_LEVELS` names.
        objects: ``N`` arrays ``(H, W)`` uint8, 1 on the object, or ``None`` where the probe has no masks.
        title: what all of them have in common.
        notes: for each image the two lines that stand under its panel on the sheet, and whether the prediction is
            right (``None`` where that is not known).
        slices: for each volume the slice that is shown, counted from 1; ``None`` for images.

    """

    panels: list[Array]
    captions: list[str]
    pictures: list[Array]
    blended: list[Array]
    levels: list[Array]
    objects: list[Array] | None
    title: str
    notes: list[tuple[str, str, bool | None]]
    slices: list[int] | None = None

    def sheet(self) -> Array:
        """All panels with their captions in one picture, drawn once and kept.

        Returns:
            ``(H, W, 3)`` uint8, about three by two in shape.

        """
        return self._sheet

    @cached_property
    def _sheet(self) -> Array:
        from PIL import Image, ImageDraw

        text, small = _font(15), _font(12)
        high, wide = self.panels[0].shape[:2] if self.panels else (0, 0)
        cell_wide, cell_high = max(wide, _NARROWEST) + 2 * _MARGIN, high + _BELOW
        columns = _columns(len(self.panels), cell_wide, cell_high)
        size = (columns * cell_wide, _TOP + math.ceil(len(self.panels) / columns) * cell_high)
        page = Image.new("RGB", size, (255, 255, 255))
        pen = ImageDraw.Draw(page)
        pen.text((_MARGIN, 8), _fit(self.title, text, size[0] - 2 * _MARGIN), _INK, text)
        pen.text((_MARGIN, 32), _fit(_LEGEND, small, size[0] - 2 * _MARGIN), _PALE, small)
        for index, (panel, (first, second, right)) in enumerate(zip(self.panels, self.notes, strict=True)):
            row, column = divmod(index, columns)
            x, y = column * cell_wide + _MARGIN, _TOP + row * cell_high
            room = cell_wide - 2 * _MARGIN
            page.paste(Image.fromarray(panel), (x, y))
            colour = _INK if right is None else _RIGHT if right else _WRONG
            pen.text((x, y + high + 4), _fit(first, text, room), colour, text)
            pen.text((x, y + high + 25), _fit(second, small, room), _PALE, small)
        return np.asarray(page)


def draw(
    snapshot: Snapshot,
    probe: ProbeImages,
    *,
    colormap: str = "inferno",
    signed_colormap: str = "RdBu_r",
    alpha: float = 0.8,
) -> Pictures:
    """Draw a snapshot.

    The heat lies over the picture in grey, so that every colour is heat (the picture in its own colours stands
    beside it), and fades with the map, so that the picture stays visible where the model does not look. Each map is
    shown by its own maximum. Of a volume the slice with the most positive relevance is shown, by that slice's maximum
    (:func:`~egcam_lightning.pictures.volumes.strongest_slices`).

    Args:
        snapshot: maps of ``N`` images.
        probe: the ``N`` images.
        colormap: matplotlib's name of a perceptually uniform colour map, for the heat.
        signed_colormap: matplotlib's name of a diverging one, for the signed maps.
        alpha: opacity of the heat where it is hottest, from 0 to 1.

    Returns:
        The pictures.

    Raises:
        ValueError: for an unknown colour map, an opacity out of range, or a snapshot of other images or volumes.

    Example:
        >>> import torch
        >>> one = torch.ones(1)
        >>> snapshot = Snapshot(3, 99, "epoch", "conv", 1, torch.ones(1, 2, 2), one.long(), one.long(), *[one] * 4)
        >>> probe = ProbeImages(torch.zeros(1, 32, 32, 3, dtype=torch.uint8), torch.tensor([1]), ("cat", "dog"))
        >>> pictures = draw(snapshot, probe)
        >>> pictures.panels[0].shape
        (128, 392, 3)
        >>> pictures.captions[0]
        '#0 · ✓ predicted dog · explains dog · score 1 · gap 100.0 % · epoch 3, step 99 · colours stretched'

    """
    heat_table, signed_table = color_table(colormap), color_table(signed_colormap)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is the opacity of the heat, from 0 to 1, got {alpha}")
    if len(snapshot.attribution) != len(probe.images):
        raise ValueError(f"the snapshot has {len(snapshot.attribution)} maps and the probe {len(probe.images)} images")
    maps = flatten_maps(snapshot.attribution, probe.depth)
    photos = _resize(take_slices(probe.images, maps.slices))
    size = (photos.shape[1], photos.shape[2])
    heat = to_heatmap(maps.positive, size)
    signed = _signed(maps.signed, size)
    # The square root keeps the warm edges of a map visible; in proportion to the heat only its peak would be.
    opacity = (alpha * heat.sqrt())[..., None].numpy()
    grey = (photos @ _LUMA)[..., None]
    blended = (grey * (1 - opacity) + heat_table[_index(heat)] * opacity + 0.5).astype(np.uint8)
    gap = np.full((len(photos), size[0], _GAP, 3), 255, np.uint8)
    panels = np.concatenate([photos, gap, blended, gap, signed_table[_index((signed + 1) / 2)]], axis=2)
    levels = (heat >= 0.25).to(torch.uint8) + (heat >= 0.5) + (heat >= 0.75)
    levels = torch.where(signed <= -0.5, 4, levels).to(torch.uint8)
    masks = None if probe.masks is None else take_slices(probe.masks, maps.slices)
    objects = None if masks is None else list(_resize(masks[..., None].to(torch.uint8))[..., 0])
    slices = None if maps.slices is None else (maps.slices + 1).tolist()
    when = f"epoch {snapshot.epoch}, step {snapshot.step}" + (" (before training)" if snapshot.when == "start" else "")
    remarks = [_remarks(snapshot, probe, index, slices) for index in range(len(photos))]
    stretched = "" if probe.restored else " · colours stretched"
    return Pictures(
        panels=list(panels),
        captions=[f"#{i} · {verdict} · {facts} · {when}{stretched}" for i, (verdict, facts, _) in enumerate(remarks)],
        pictures=list(photos),
        blended=list(blended),
        levels=list(levels.numpy()),
        objects=objects,
        title=f"{when} · layer {snapshot.layer} · each {'slice' if slices else 'map'} by its own maximum{stretched}",
        notes=[(f"#{i} {verdict}", facts, right) for i, (verdict, facts, right) in enumerate(remarks)],
        slices=slices,
    )


@lru_cache
def color_table(name: str) -> Array:
    """Look up a colour map.

    Args:
        name: matplotlib's name of it.

    Returns:
        ``(256, 3)`` uint8.

    Raises:
        ValueError: where matplotlib knows no such colour map; the message has the closest names.

    Example:
        >>> color_table("gray")[255].tolist()
        [255, 255, 255]

    """
    from matplotlib import colormaps

    if name not in colormaps:
        close = get_close_matches(str(name), list(colormaps), 3, 0.4) or ["inferno", "viridis", "RdBu_r"]
        raise ValueError(f"unknown colour map {name!r}: did you mean {', '.join(close)}?")
    table: Array = colormaps[name](np.arange(256) / 255, bytes=True)[:, :3]
    return table


def _resize(images: Tensor) -> Array:
    """``(N, H, W, C)`` uint8 at the display size: whole pixels enlarged, or their mean where they are too many."""
    longest = max(images.shape[1:3])
    if longest > LARGEST:
        size = [max(1, round(side * LARGEST / longest)) for side in images.shape[1:3]]
        small = interpolate(images.permute(0, 3, 1, 2).float(), size=size, mode="area").round()
        return small.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    factor = math.ceil(SMALLEST / longest)
    return images.repeat_interleave(factor, 1).repeat_interleave(factor, 2).numpy()


def _signed(attribution: Tensor, size: tuple[int, int]) -> Tensor:
    """``(N, h, w)`` to ``(N, *size)`` in [-1, 1], each map by its own largest magnitude."""
    maps = attribution.float().nan_to_num(0.0, 0.0, 0.0)
    maps = interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    peak = maps.abs().flatten(1).amax(1).view(-1, 1, 1)
    return torch.where(peak > 0, maps / peak.clamp(min=torch.finfo(maps.dtype).tiny), 0.0)


def _index(unit: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Values in [0, 1] to rows of a colour table."""
    return (unit * 255).round().to(torch.uint8).numpy()


def _remarks(
    snapshot: Snapshot, probe: ProbeImages, index: int, slices: list[int] | None
) -> tuple[str, str, bool | None]:
    """What is said of one image: its prediction, the facts, and whether the prediction is right."""
    prediction, target = int(snapshot.prediction[index]), int(snapshot.target[index])
    label = None if probe.labels is None else int(probe.labels[index])
    name = [_short(probe.name(k)) for k in (prediction, target)]
    right = None if label is None or prediction < 0 else prediction == label
    if prediction < 0:
        verdict = "no class predicted"
    elif right is None:
        verdict = f"predicted {name[0]}"
    elif right:
        verdict = f"✓ predicted {name[0]}"
    else:
        verdict = f"✗ predicted {name[0]}, labelled {_short(probe.name(label or 0))}"
    facts = [] if slices is None else [f"slice {slices[index]} of {probe.depth}"]
    facts.append(f"explains {name[1]}")
    for field, declared in snapshot.values_per_image().items():
        values = getattr(snapshot, field)
        if declared.caption is not None and values is not None and (said := declared.caption(float(values[index]))):
            facts.append(said)
    maps = snapshot.attribution[index]
    if not bool(maps.isfinite().all()):
        facts.append("map is not finite")
    elif not bool((maps > 0).any()):
        facts.append("nothing positive")
    return verdict, " · ".join(facts), right


def _short(name: str, longest: int = 28) -> str:
    """One line, however long the class name."""
    name = " ".join(name.split())
    return name if len(name) <= longest else name[: longest - 1] + "…"


def _columns(count: int, wide: int, high: int) -> int:
    """The number of columns that brings the sheet close to three by two, with few empty places."""

    def badness(columns: int) -> float:
        rows = math.ceil(count / columns)
        return abs(math.log(columns * wide / (rows * high) / 1.5)) + (rows * columns - count) / count

    return min(range(1, count + 1), key=badness, default=1)


def _fit(text: str, font: FreeTypeFont, room: float) -> str:
    """Cut ``text`` with an ellipsis to ``room`` pixels."""
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "…") > room:
        text = text[:-1]
    return text + "…" if text else ""


@lru_cache
def _font(size: int) -> FreeTypeFont:
    """The font that matplotlib ships, so that pictures look the same on every machine."""
    from matplotlib import get_data_path
    from PIL import ImageFont

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
