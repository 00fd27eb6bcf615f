"""Judges of maps of one photograph: this package's metrics, and, where installed, Quantus' and captum's own code.

All maps of a photograph are judged together: those that order its pixels alike are judged once, and what the score does
when blocks are taken away, which no map has a part in, is asked of the network once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from egcam_lightning.metrics.functional import (
    block_effects,
    blurred,
    class_scores,
    deletion_auc,
    infidelity_of,
    insertion_auc,
    random_blocks,
)

OURS, QUANTUS, CAPTUM = "ours", "quantus", "captum"
AT_ONCE = 4  # images: what a core is fastest with at 224 x 224
SEED_OF_CAPTUM = 7  # its blocks are others than ours


def available() -> tuple[str, ...]:
    """The judges that are installed."""
    return (OURS, *(name for name in (QUANTUS, CAPTUM) if find_spec(name)))


def judge(
    model: nn.Module,
    image: Tensor,
    target: Tensor,
    maps: Sequence[Tensor],
    judges: Sequence[str],
    steps: int,
    blocks: int,
) -> list[dict[str, float]]:
    """What judges say of maps of one image.

    Args:
        model: from images to logits, in evaluation mode.
        image: ``(1, 3, H, W)``.
        target: ``(1,)``.
        maps: ``(h, w)`` each, at grids of their own.
        judges: of :func:`available`; ``"order"`` for ours without the infidelity, where layers are chosen.
        steps: of insertion, deletion and pixel flipping.
        blocks: of infidelity.

    Returns:
        For each map ``insertion``, ``deletion`` and ``infidelity`` by our metrics; ``flipping``, Quantus' pixel
        flipping of the least relevant pixels first minus that of the most relevant first; and ``captum``, captum's
        infidelity with a scale, which may be negative there: it takes an inverted map for as good as the map.

    """
    values: list[dict[str, float]] = [{} for _ in maps]
    for rows in by_grid(maps):
        together = torch.stack([maps[row] for row in rows]).float()
        alike = same_order(together)
        kept = sorted(set(alike))
        found: dict[str, Tensor] = {}
        if {OURS, "order"} & set(judges):
            found |= orders(model, image, target, together[kept], steps)
        if QUANTUS in judges:
            found["flipping"] = pixel_flipping(model, image, target, together[kept], steps)
        for row, like in zip(rows, alike, strict=True):
            values[row] |= {name: float(column[kept.index(like)]) for name, column in found.items()}
    if OURS in judges:
        _merge(values, "infidelity", infidelities(model, image, target, maps, blocks))
    if CAPTUM in judges:
        _merge(values, "captum", captum_infidelities(model, image, target, maps, blocks))
    return values


def sooner(model: nn.Module, images: Tensor) -> nn.Module:
    """A copy of a network that gives the same scores in less time on a CPU; to be asked, not explained.

    Args:
        model: from images to logits, in evaluation mode.
        images: ``(n, 3, H, W)``, on which it has to agree.

    """
    from torch.fx.experimental.optimization import fuse

    with torch.no_grad():
        try:
            fast = fuse(model).eval()  # batch norm into convolutions
            agrees = torch.allclose(fast(images), model(images), rtol=1e-3, atol=1e-3)
        except Exception:  # a network whose path depends on its input is no graph
            agrees = False
    return (fast if agrees else deepcopy(model)).to(memory_format=torch.channels_last)


def _merge(values: list[dict[str, float]], name: str, column: Sequence[float]) -> None:
    for value, number in zip(values, column, strict=True):
        value[name] = float(number)


def by_grid(maps: Sequence[Tensor]) -> list[list[int]]:
    """The rows of maps of the same grid, for every grid."""
    grids: dict[tuple[int, ...], list[int]] = {}
    for row, item in enumerate(maps):
        grids.setdefault(tuple(item.shape), []).append(row)
    return list(grids.values())


def same_order(maps: Tensor, tolerance: float = 1e-4) -> list[int]:
    """For each of maps ``(M, h, w)`` the first one that is the same but for a positive scale and a constant."""
    flat = maps.flatten(1)
    flat = flat - flat.amin(1, keepdim=True)
    flat = flat / flat.amax(1, keepdim=True).clamp(min=torch.finfo(flat.dtype).tiny)
    first: list[int] = []
    for row in range(len(flat)):
        apart = (flat[: row + 1] - flat[row]).abs().amax(1)
        first.append(int((apart <= tolerance).int().argmax()) if bool(apart.isfinite().all()) else row)
    return first


def orders(model: nn.Module, image: Tensor, target: Tensor, maps: Tensor, steps: int) -> dict[str, Tensor]:
    """Our insertion and deletion of maps ``(M, h, w)``, each ``(M,)``."""
    probability = class_scores(model, softmax=True)
    images, blur = (part.expand(len(maps), -1, -1, -1) for part in (image, blurred(image)))
    options = {"num_steps": steps, "replacement": blur, "chunk_size": AT_ONCE}
    target = target.expand(len(maps))
    return {
        "insertion": insertion_auc(probability, images, maps, target, **options),
        "deletion": deletion_auc(probability, images, maps, target, **options),
    }


def infidelities(model: nn.Module, image: Tensor, target: Tensor, maps: Sequence[Tensor], blocks: int) -> list[float]:
    """Our infidelity of maps ``(h, w)``; the network is asked for the blocks' effects once."""
    blur = blurred(image)
    _, drop = block_effects(
        class_scores(model),
        image,
        maps[0][None],
        target,
        num_perturbations=blocks,
        replacement=blur,
        chunk_size=AT_ONCE,
    )
    values = [float("nan")] * len(maps)
    for rows in by_grid(maps):
        count = len(rows)
        predicted, _ = block_effects(
            lambda images, _: images.new_zeros(len(images)),  # what the maps predict asks no network
            image.expand(count, -1, -1, -1),
            torch.stack([maps[row] for row in rows]).float(),
            target.expand(count),
            num_perturbations=blocks,
            replacement=blur.expand(count, -1, -1, -1),
        )
        for row, value in zip(rows, infidelity_of(predicted, drop.expand(count, -1)), strict=True):
            values[row] = float(value)
    return values


def pixels_of(item: Tensor, size: Sequence[int]) -> Tensor:
    """A map ``(h, w)`` as ``(1, 1, H, W)``: bilinear weights that share a cell out to its pixels.

    The map keeps its total where the grid divides the image.
    """
    share = item.numel() / (size[0] * size[1])
    return share * F.interpolate(item[None, None].float(), size=tuple(size), mode="bilinear", align_corners=False)


def pixel_flipping(model: nn.Module, image: Tensor, target: Tensor, maps: Tensor, steps: int) -> Tensor:
    """Quantus' pixel flipping of maps ``(M, h, w)``, ``(M,)``: least relevant first minus most relevant first.

    Pixels give way to the image's mean; Quantus flips channels one by one, so a step takes three as many values.
    """
    import quantus

    size = image.shape[2:]
    area = size[0] * size[1]
    # It wants whole steps of the area, and takes one for each channel.
    parts = min((k for k in range(1, steps + 1) if area % k == 0), key=lambda k: abs(k - steps / image.shape[1]))
    flip = quantus.PixelFlipping(
        features_in_step=area // parts,
        perturb_baseline="mean",
        abs=False,
        normalise=False,
        disable_warnings=True,
        display_progressbar=False,
    )
    pixels = torch.cat([pixels_of(item, size) for item in maps])
    both = torch.cat([-pixels, pixels]).numpy()
    curves = flip(
        model=model,
        x_batch=image.repeat(len(both), 1, 1, 1).numpy(),
        y_batch=target.repeat(len(both)).numpy(),
        a_batch=both,
        device="cpu",
        softmax=True,
        batch_size=AT_ONCE,
    )
    least, most = torch.tensor(curves).float().mean(1).view(2, len(maps))
    return least - most


def captum_infidelities(
    model: nn.Module, image: Tensor, target: Tensor, maps: Sequence[Tensor], blocks: int
) -> list[float]:
    """Captum's infidelity of maps ``(h, w)`` with its own scale, over the mean square of the effects.

    Blocks give way to grey (0, the mean colour). What the network says of the same images is remembered.
    """
    from captum.metrics import infidelity

    size = tuple(image.shape[2:])
    masks = random_blocks(size, blocks, SEED_OF_CAPTUM)[:, None]
    forward = remembered(model)

    def value(pixels: Tensor, *, normalize: bool) -> float:
        found = infidelity(
            forward,
            lambda images: (masks.expand_as(images).float(), torch.where(masks, 0.0, images)),
            image,
            # A value for each channel; a block takes all three away, and each gives a third of the sum.
            (pixels / image.shape[1]).expand_as(image),
            target=target,
            n_perturb_samples=blocks,
            normalize=normalize,
        )
        return float(found)

    scale = value(torch.zeros(1, 1, *size), normalize=False)
    return [value(pixels_of(item, size), normalize=True) / scale if scale else 1.0 for item in maps]


def remembered(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The model, asked once for the same batch of images."""
    kept: dict[int, Tensor] = {}

    def forward(images: Tensor) -> Tensor:
        key = hash(images.detach().contiguous().numpy().tobytes())
        if key not in kept:
            with torch.no_grad():
                kept[key] = torch.cat([model(part) for part in images.split(AT_ONCE)])
        return kept[key]

    return forward
