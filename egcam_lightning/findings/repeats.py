"""What several images of a class repeat: a piece that is the same wherever it lies, as a logo or a tag is."""

from __future__ import annotations

import torch
from torch import Tensor

from egcam_lightning.findings.windows import Windows, means_within

_PROMISING = 3  # one window in so many
COPIES = 2  # other images that a piece is in
# Of the range of pixels: by how much the same may differ, by compression and noise.
_ALIKE = 0.12
_FLAT = 0.01  # what deviates less has nothing to be recognised by
_NUMBERS_AT_ONCE = 2**22


def repeated_pieces(
    images: Tensor, windows: Windows, rise: Tensor, group: Tensor, groups: int, outside: Tensor
) -> tuple[Tensor, Tensor]:
    """Of each class what one of its windows holds that two more of its images hold as well, at any place.

    The windows that say most for the class, a third of them, are looked for in its other images by normalised
    cross-correlation (Lewis, 1995). Of each and of the two places that are most like it those pixels count that are the
    same in all three. The window serves of which these are many and differ most among themselves.

    Args:
        images: ``(N, C, H, W)``.
        windows: of some of them, one an image.
        rise: ``(n,)``, how much each says for its class.
        group: ``(n,)`` int64, which class each is of.
        groups: how many classes there are, k.
        outside: ``(N, 1, H, W)``, 1 where pixels count.

    Returns:
        ``(k, C, H, W)`` float32, the pieces at the place of that window, the mean of all three; and ``(k, 1, H, W)``
        bool, where they are: nowhere for classes with fewer than three windows, or without such a piece.

    Example:
        >>> images = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> images[0, :, 2:6, 2:6] = images[1, :, 8:12, 3:7] = images[2, :, 4:8, 9:13] = torch.eye(4)
        >>> window = Windows(*torch.tensor([[0, 1, 2], [2, 8, 4], [2, 3, 9], [4, 4, 4], [4, 4, 4]]))
        >>> _, where = repeated_pieces(
        ...     images, window, torch.ones(3), torch.zeros(3).long(), 1, torch.ones(3, 1, 16, 16)
        ... )
        >>> int(where.sum())
        16

    """
    pieces = images.new_zeros((groups, *images.shape[1:]), dtype=torch.float32)
    where = images.new_zeros((groups, 1, *images.shape[2:]), dtype=torch.bool)
    low, high = (edge((0, 2, 3), keepdim=True).float() for edge in (images.amin, images.amax))
    scale = (high - low).clamp(min=torch.finfo(torch.float32).tiny)
    for one in range(groups):
        mine, says = windows[group == one], rise[group == one]
        if len(mine) <= COPIES:
            continue
        pictures, counts = (images[mine.image].float() - low) / scale, outside[mine.image] > 0
        promising = torch.zeros_like(says, dtype=torch.bool)
        promising[says.topk(-(-len(mine) // _PROMISING)).indices] = True
        most = 0.0
        for size in sorted(set(zip(mine.height.tolist(), mine.width.tolist(), strict=True))):
            rows = (promising & (mine.height == size[0]) & (mine.width == size[1])).nonzero().flatten()
            if not len(rows):
                continue
            found, same, amount = _repeated(pictures, counts, rows, mine.top[rows], mine.left[rows], size)
            best = int(amount.argmax())
            if float(amount[best]) > most:
                most = float(amount[best])
                top, left = int(mine.top[rows[best]]), int(mine.left[rows[best]])
                place = (one, slice(None), slice(top, top + size[0]), slice(left, left + size[1]))
                where[one] = False
                where[place], pieces[place] = same[best], found[best] * scale[0] + low[0]
    return pieces, where


def _repeated(
    pictures: Tensor, counts: Tensor, rows: Tensor, top: Tensor, left: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Of windows of one size: what they and their copies are in the mean, where these are the same, and how much it is.

    Args:
        pictures: ``(n, C, H, W)``, of one class, in [0, 1].
        counts: ``(n, 1, H, W)`` bool, the pixels that count.
        rows: ``(m,)`` int64, of which pictures the windows are.
        top: ``(m,)`` int64.
        left: ``(m,)`` int64.
        size: height and width.

    Returns:
        ``(m, C, h, w)``, ``(m, 1, h, w)`` bool and ``(m,)``.

    """
    templates = cut(pictures, rows, top, left, size)
    likeness, place = _most_alike(pictures, templates)
    image = likeness.scatter(1, rows[:, None], -torch.inf).topk(COPIES, 1).indices
    place = place.gather(1, image)
    across = pictures.shape[3] - size[1] + 1
    image = torch.cat([rows[:, None], image], 1).flatten()
    top = torch.cat([top[:, None], place // across], 1).flatten()
    left = torch.cat([left[:, None], place % across], 1).flatten()
    copies = cut(pictures, image, top, left, size).view(len(rows), 1 + COPIES, -1, *size)
    alike = (copies - copies.median(1, keepdim=True).values).abs().amax((1, 2)) < _ALIKE
    same = alike[:, None] & cut(counts, image, top, left, size).view(len(rows), 1 + COPIES, 1, *size).all(1)
    mean, inside = copies.mean(1), same.flatten(2)
    count = inside.sum(2)
    values = mean.flatten(2)
    middle = (values * inside).sum(2, keepdim=True) / count.clamp(min=1)[..., None]
    deviation = (((values - middle).square() * inside).sum(2) / count.clamp(min=1)).sqrt().mean(1)
    # Of what varies no more than copies may differ, such as a piece of sky, one is like the other without being it.
    return mean, same, count[:, 0] * deviation * (deviation > _ALIKE)


def _most_alike(pictures: Tensor, templates: Tensor) -> tuple[Tensor, Tensor]:
    """``(m, n)``: how alike each template and the place of each picture are that is most like it, and which that is."""
    height, width = templates.shape[2:]
    size = pictures.shape[2:]
    inside = (..., slice(size[0] - height + 1), slice(size[1] - width + 1))
    few = max(1, _NUMBERS_AT_ONCE // pictures[0].numel())
    fewer = max(1, _NUMBERS_AT_ONCE // pictures[:few, 0].numel())
    centred = templates - templates.mean((1, 2, 3), keepdim=True)
    own = centred.square().mean((1, 2, 3)).clamp(min=_FLAT**2).sqrt()[:, None, None, None]
    columns = []
    for some in torch.split(pictures, few):
        some = some - some.mean()
        spectrum = torch.fft.rfft2(some)
        mean, square = (means_within(values.mean(1), (height, width)) for values in (some, some.square()))
        deviation = (square - mean.square()).clamp(min=_FLAT**2).sqrt()
        rows = []
        for part, deviations in zip(torch.split(centred, fewer), torch.split(own, fewer), strict=True):
            product = torch.einsum("nchw,mchw->mnhw", spectrum, torch.fft.rfft2(part, s=size).conj())
            inner = torch.fft.irfft2(product, s=size)[inside] / part[0].numel()
            rows.append((inner / (deviations * deviation)).flatten(2).max(2))
        columns.append([torch.cat(values) for values in zip(*rows, strict=True)])
    likeness, place = (torch.cat(values, 1) for values in zip(*columns, strict=True))
    return likeness, place


def cut(pictures: Tensor, image: Tensor, top: Tensor, left: Tensor, size: tuple[int, int]) -> Tensor:
    """``(m, C, h, w)``: pieces of one size.

    Args:
        pictures: ``(n, C, H, W)``.
        image: ``(m,)`` int64, which picture each is of.
        top: ``(m,)`` int64, its first row.
        left: ``(m,)`` int64, its first column.
        size: height and width.

    """
    row = top[:, None, None] + torch.arange(size[0], device=top.device)[:, None]
    column = left[:, None, None] + torch.arange(size[1], device=left.device)
    return pictures[image[:, None, None], :, row, column].movedim(3, 1)
