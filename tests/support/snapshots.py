"""Snapshots, probes and histories, made without a training run."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from egcam_lightning.history.codec import round_maps
from egcam_lightning.history.history import History
from egcam_lightning.history.records import ProbeImages, Snapshot

CLASSES = ("cat", "dog", "<script>alert(1)</script>", "a class with a name that is much too long for its column", "owl")


def make_probe(count: int, *size: int, **changes: object) -> ProbeImages:
    """Noise of this size (32 x 48), with all that ``changes`` says of it."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, *(size or (32, 48)), 3), generator=generator).to(torch.uint8)
    return ProbeImages(**{"images": images, "restored": True, **changes})


def make_snapshot(maps: Tensor, **changes: object) -> Snapshot:
    """A snapshot of these maps, every other value the same for all images."""
    n = len(maps)
    arguments = {
        "epoch": 3,
        "step": 120,
        "when": "epoch",
        "layer": "layer4",
        "baselines": 1,
        "attribution": maps,
        "target": torch.zeros(n, dtype=torch.int64),
        "prediction": torch.zeros(n, dtype=torch.int64),
        "score": torch.full((n,), 4.5),
        "baseline_score": torch.zeros(n),
        "completeness_gap": torch.full((n,), 0.013),
        "off_grid": torch.zeros(n),
        **changes,
    }
    return Snapshot(**arguments)


def random_snapshot(
    epoch: int, step: int, count: int, grid: tuple[int, ...], drift: bool = True, **changes: object
) -> Snapshot:
    """A snapshot with its own value for every image, the same again for the same epoch and step."""
    generator = torch.Generator().manual_seed(epoch * 1000 + step)
    names = ["score", "baseline_score", "completeness_gap", "off_grid"]
    names += ["drift_previous", "drift_reference", "noise_floor"] if drift else []
    values = {name: torch.randn(count, generator=generator) for name in names}
    target, prediction = torch.randint(0, 99, (2, count), generator=generator)
    maps = round_maps(torch.randn(count, *grid, generator=generator))
    own = {"epoch": epoch, "step": step, "target": target, "prediction": prediction}
    return make_snapshot(maps, **{**own, **values, **changes})


def make_history(
    images: int = 8,
    snapshots: int = 12,
    size: tuple[int, int] = (48, 48),
    grid: tuple[int, int] = (7, 7),
    *,
    shortcut: bool = False,
    masks: bool = True,
    seed: int = 0,
) -> History:
    """Textured pictures with a bright disc each; maps drift from noise towards the disc, or towards a planted tag."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % len(CLASSES)
    centre = 0.25 + 0.5 * torch.rand(images, 2, generator=generator)
    disc = _distance(centre, size) < 0.16
    texture = interpolate(torch.rand(images, 3, 9, 9, generator=generator), size, mode="bicubic").clamp(0, 1)
    texture = 0.75 * texture + 0.25 * torch.rand(images, 3, *size, generator=generator)
    colour = 0.6 + 0.4 * torch.rand(images, 3, 1, 1, generator=generator)
    pictures = torch.where(disc[:, None], colour, 0.6 * texture)
    if shortcut:
        tag = max(2, min(size) // 8)
        pictures[:, :, :tag, :tag] = torch.rand(images, 3, 1, 1, generator=generator).round()
    focus = torch.full_like(centre, 0.08) if shortcut else centre
    blob = torch.exp(-((_distance(focus, grid) / 0.17) ** 2))
    taken: list[Snapshot] = []
    for index in range(snapshots):
        learnt = 1 - 0.75**index
        noise = torch.randn(images, *grid, generator=generator)
        maps = (0.2 + 2 * learnt) * (learnt * blob + (0.02 + 0.35 * (1 - learnt)) * noise - 0.05)
        drift = (1.1 * 0.7**index + 0.12 * torch.rand(images, generator=generator)) if index > 1 else None
        floor = 0.1 + 0.05 * torch.rand(images, generator=generator)
        wrong = torch.rand(images, generator=generator) > 0.3 + 0.6 * learnt
        score = 6 * learnt + torch.randn(images, generator=generator)
        prediction = torch.where(wrong, (labels + 1) % len(CLASSES), labels)
        metrics = _metrics(learnt, shortcut, generator)
        if drift is not None:
            previous = taken[-1].noise_floor
            assert previous is not None
            moved = drift > torch.maximum(floor, previous)
            metrics |= {"drift/previous": drift.mean().item(), "drift/reference": 0.9 * learnt}
            metrics |= {"drift/significant": moved.float().mean().item(), "drift/ssim": drift.mean().item() / 2}
            metrics |= {"drift/top_iou": drift.mean().item() / 1.5, "drift/centre_shift": drift.mean().item() / 8}
            metrics["prediction_changed"] = (prediction != taken[-1].prediction).float().mean().item()
        if masks:
            on_object = 0.05 if shortcut else 0.1 + 0.5 * learnt
            metrics |= {"relevance_mass": on_object, "pointing_game": min(1.0, 1.5 * on_object)}
        taken.append(
            Snapshot(
                epoch=max(0, index - 1),
                step=40 * index,
                when="start" if index == 0 else "epoch",
                layer="features.7",
                baselines=min(index, 1),
                attribution=maps,
                target=labels,
                prediction=prediction,
                score=score,
                baseline_score=torch.zeros(images),
                completeness_gap=0.3 * torch.rand(images, generator=generator),
                off_grid=torch.zeros(images),
                drift_previous=drift,
                drift_reference=None if drift is None else 0.9 * drift,
                noise_floor=floor,
                metrics=metrics,
            )
        )
    probe = ProbeImages(
        images=(255 * pictures).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous(),
        labels=labels,
        class_names=CLASSES,
        fingerprint=f"{seed}-{shortcut}",
        restored=True,
        masks=disc if masks else None,
    )
    return History(probe, tuple(taken))


def _metrics(learnt: float, shortcut: bool, generator: torch.Generator) -> dict[str, float]:
    jitter = 0.03 * torch.rand((), generator=generator).item()
    return {
        "completeness_gap": 0.03 + jitter + 0.2 * (1 - learnt),
        "infidelity": 0.15 + jitter + 0.6 * (1 - learnt),
        "insertion_auc": 0.2 + 0.6 * learnt + jitter,
        "deletion_auc": 0.35 - 0.2 * learnt + jitter,
        "complexity": 0.95 - 0.2 * learnt + jitter,
        "sparseness": 0.3 + 0.4 * learnt + jitter,
        "consensus": (0.4 + 0.58 * min(1.0, 3 * learnt)) if shortcut else 0.5 + jitter,
        "drift/noise_floor": 0.12 + jitter,
        "degenerate": 0.0,
    }


def _distance(centre: Tensor, size: tuple[int, int]) -> Tensor:
    """``(N, H, W)``: distance of every pixel from ``(N, 2)`` centres, as shares of the sides."""
    rows, columns = ((torch.arange(side) + 0.5) / side for side in size)
    down = rows[None, :, None] - centre[:, 0, None, None]
    across = columns[None, None, :] - centre[:, 1, None, None]
    return (down**2 + across**2).sqrt()
