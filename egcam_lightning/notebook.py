"""How values show themselves in a notebook: a strip of pictures in HTML, and matplotlib's axes."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from html import escape
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 8  # pictures of a strip
_SIDE = 96  # pixels of a picture's longer side
_HEAT = "inferno"


@dataclass(frozen=True)
class Frame:
    """A page that a notebook shows in a frame of its own, which cannot touch the notebook.

    Attributes:
        page: its HTML.
        height: of the frame, in pixels.

    """

    page: str = field(repr=False)
    height: int

    def _repr_html_(self) -> str:
        """The frame, with the page in it."""
        return (
            f'<iframe sandbox="allow-scripts" srcdoc="{escape(self.page)}" width="100%" height="{self.height}" '
            'style="border:0"></iframe>'
        )


def strip(title: str, pictures: Tensor | Sequence[Tensor], captions: Sequence[str], more: Sequence[str] = ()) -> str:
    """HTML of a title, a row of pictures with captions, and sentences.

    Args:
        title: plain text, as all the rest.
        pictures: ``(N, H, W, 3)`` uint8, or one ``(H, W, 3)`` each; the first eight are shown.
        captions: one a picture.
        more: what stands below.

    Example:
        >>> html = strip("Two & more", torch.zeros(2, 4, 4, 3, dtype=torch.uint8), ["a", "b"])
        >>> html.count("<img"), "Two &amp; more" in html
        (2, True)

    """
    cells = "".join(
        f'<figure style="margin:0;text-align:center"><img src="{_png(picture)}" width="{_SIDE}" '
        f'style="image-rendering:pixelated"><figcaption style="font-size:80%">{escape(caption)}</figcaption></figure>'
        for picture, caption in zip(pictures[:SHOWN], captions, strict=False)
    )
    row = f'<div style="display:flex;flex-wrap:wrap;gap:4px">{cells}</div>' if cells else ""
    return f"<div><div>{escape(title)}</div>{row}{''.join(f'<div>{escape(one)}</div>' for one in more)}</div>"


def heat(maps: Tensor, images: Tensor | None = None) -> Tensor:
    """Colour maps, over their images where these are given.

    Args:
        maps: ``(N, h, w)``, signed; what is positive shows. Of volumes ``(N, d, h, w)``, summed over depth.
        images: ``(N, H, W, 3)`` uint8; of volumes ``(N, D, H, W, 3)``, of which the middle slice shows.

    Returns:
        ``(N, H, W, 3)`` uint8, of the maps' size without images.

    """
    import matplotlib

    positive = maps.detach().cpu().float().nan_to_num(0.0, 0.0, 0.0).clamp(min=0)
    positive = positive.sum(1) if positive.ndim == 4 else positive
    if images is not None:
        images = images[:, images.shape[1] // 2] if images.ndim == 5 else images
        positive = interpolate(positive[:, None], size=tuple(images.shape[1:3]), mode="bilinear")[:, 0]
    relative = positive / positive.amax((1, 2), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    coloured = torch.from_numpy(matplotlib.colormaps[_HEAT](relative.numpy())[..., :3]).float() * 255
    if images is not None:
        share = 0.7 * relative[..., None]
        coloured = share * coloured + (1 - share) * images.cpu().float()
    return coloured.round().to(torch.uint8)


def stretch(picture: Tensor) -> Tensor:
    """A picture ``(C, h, w)`` as it can be shown, ``(h, w, 3)`` uint8; one of other numbers by its own range."""
    picture = picture.detach().cpu()
    if picture.dtype != torch.uint8:
        low, high = picture.float().aminmax()
        scale = 255 / (high - low).clamp(min=torch.finfo(torch.float32).tiny)
        picture = ((picture.float() - low) * scale).to(torch.uint8)
    colours = picture if len(picture) == 3 else picture[:1].expand(3, -1, -1)
    return colours.movedim(0, -1)


def plot_pictures(pictures: Tensor, titles: Sequence[str]) -> tuple[Figure, Any]:
    """A figure with a picture on each of its axes.

    Args:
        pictures: ``(N, H, W, 3)`` uint8.
        titles: one a picture.

    Returns:
        The figure and its axes, an array of ``N``.

    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(pictures), figsize=(2 * len(pictures), 2.3), squeeze=False)
    for ax, picture, title in zip(axes[0], pictures, titles, strict=True):
        ax.imshow(picture.numpy())
        ax.set_title(title, fontsize="small")
        ax.axis("off")
    return figure, axes[0]


def plot_lines(rows: Sequence[dict[str, Any]], keys: Sequence[str], ax: Axes | None = None) -> tuple[Figure, Axes]:
    """Values over steps, a line a key.

    Args:
        rows: with ``step`` and values by key.
        keys: at least one.
        ax: where to draw; ``None`` for a new figure.

    Returns:
        The figure and its axes.

    Raises:
        ValueError: for a key that no row has; names the close ones.

    """
    import matplotlib.pyplot as plt

    known = sorted({key for row in rows for key in row} - {"epoch", "step", "when"})
    for key in keys or [""]:
        if key not in known:
            close = get_close_matches(key, known, n=3, cutoff=0.5) or known
            raise ValueError(f"There is no value {key!r} to plot. There are: {', '.join(close) or 'none'}.")
    if ax is None:
        _, ax = plt.subplots()
    for key in keys:
        points = [(row["step"], row[key]) for row in rows if key in row]
        ax.plot(*zip(*points, strict=True), marker="o", label=key)
    ax.set_xlabel("step")
    ax.legend()
    return ax.get_figure(), ax  # type: ignore[return-value]


def _png(picture: Tensor) -> str:
    from PIL import Image

    image = Image.fromarray(picture.cpu().contiguous().numpy())
    image.thumbnail((2 * _SIDE, 2 * _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
