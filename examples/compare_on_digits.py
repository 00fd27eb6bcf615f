"""Compare Grad-CAM and its relatives: which maps are true of the model, and does completeness decide it?

Two architectures, three seeds, two layers, ten methods of one family. Every map is judged by this package's metrics
and, where they are installed, by captum's infidelity and Quantus' pixel flipping, which other people wrote and which
replace pixels by other things than ours do. Writes ``compare_on_digits.md``, ``.csv`` and ``.png``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from digits import DigitsOnTexture
from scipy.stats import rankdata, spearmanr
from study import (
    VGG,
    Progress,
    ResNet,
    accuracy,
    fit,
    markdown,
    mean_spread,
    normalised,
    seeded,
    two_threads,
    write_csv,
)
from torch import Tensor, nn
from torch.nn import functional as F

from egcam_lightning import ExpectedGradCAM, Explanation, Perturbation
from egcam_lightning.metrics import CompletenessGap
from egcam_lightning.metrics.functional import (
    block_effects,
    class_scores,
    complexity,
    deletion_auc,
    infidelity_of,
    insertion_auc,
    max_sensitivity,
    random_blocks,
    relevance_mass,
)

METHODS = {
    "Grad-CAM": Perturbation.grad_cam(),
    "HiResCAM": Perturbation.hires_cam(),
    "SmoothGrad-CAM": Perturbation.smooth_grad_cam(),
    "Integrated Grad-CAM": Perturbation.integrated_grad_cam(),
    "Expected, channel, input": replace(Perturbation.expected("input"), weighting="channel"),
    "Expected, channel, activation": replace(Perturbation.expected(), weighting="channel"),
    "Expected, optimal channels, activation": Perturbation(weighting="optimal"),
    "Expected, LayerCAM, activation": Perturbation(weighting="layercam"),
    "Expected, elementwise, input": Perturbation.expected("input"),
    "Expected, elementwise, activation": Perturbation.expected(),
}
OURS = "Expected, elementwise, activation"
ARCHITECTURES: dict[str, type[VGG] | type[ResNet]] = {"VGG": VGG, "ResNet": ResNet}
# Title, and whether higher (1) or lower (-1) is better; 0 where neither is.
COLUMNS = {
    "insertion": ("insertion ↑", 1),
    "deletion": ("deletion ↓", -1),
    "infidelity": ("infidelity ↓", -1),
    "yeh": ("infidelity, Yeh's own ↓", -1),
    "gap": ("completeness gap ↓", -1),
    "sensitivity": ("sensitivity ↓", -1),
    "complexity": ("complexity", 0),
    "mass": ("relevance mass ↑", 1),
    "quantus": ("Quantus pixel flipping ↓", -1),
    "captum": ("captum infidelity ↓", -1),
}
SEED_OF_JUDGES = 7  # their blocks are others than ours


@dataclass(frozen=True)
class Size:
    """How large a study is.

    Attributes:
        seeds: models of each architecture.
        copies: how often each training digit is there.
        train: training images at most.
        epochs: of training.
        images: explained validation images.
        draws: an image, and as many baselines.
        blocks: of infidelity, ours and captum's.
        steps: of insertion, deletion and pixel flipping.
        shaken: images, and samples of each, of sensitivity.

    """

    seeds: int = 3
    copies: int = 2
    train: int = 10_000
    epochs: int = 5
    images: int = 32
    draws: int = 32
    blocks: int = 24
    steps: int = 16
    shaken: tuple[int, int] = (8, 4)


QUICK = Size(seeds=1, copies=1, train=256, epochs=1, images=4, draws=4, blocks=4, steps=2, shaken=(2, 1))


@dataclass(frozen=True, eq=False)
class Probe:
    """What is explained: images ``(N, 3, H, W)``, targets ``(N,)``, masks ``(N, H, W)``, baselines ``(R, 3, H, W)``."""

    images: Tensor
    target: Tensor
    masks: Tensor
    baselines: Tensor


def measure(model: nn.Module, explainer: ExpectedGradCAM, probe: Probe, size: Size) -> dict[str, float]:
    """Every number about one method at one layer of one model, each the mean over images that have one."""
    found: Explanation = explainer(probe.images, probe.baselines, probe.target)
    maps = found.attribution
    logit, probability = class_scores(model), class_scores(model, softmax=True)
    predicted, drop = block_effects(logit, probe.images, maps, probe.target, num_perturbations=size.blocks)
    gap = CompletenessGap()
    gap.update(maps, found.score, found.baseline_score, found.off_grid)
    count, samples = size.shaken
    shaken = max_sensitivity(
        lambda images, target: explainer(images, probe.baselines, target).attribution,
        probe.images[:count],
        explainer(probe.images[:count], probe.baselines, probe.target[:count]).attribution,
        probe.target[:count],
        num_samples=samples,
    )
    ours = {
        "insertion": insertion_auc(probability, probe.images, maps, probe.target, num_steps=size.steps),
        "deletion": deletion_auc(probability, probe.images, maps, probe.target, num_steps=size.steps),
        "infidelity": infidelity_of(predicted, drop),
        "yeh": infidelity_of(predicted, drop, normalize=False),
        "gap": gap.compute(),
        "sensitivity": shaken,
        "complexity": complexity(maps),
        "mass": relevance_mass(maps, probe.masks),
    }
    return {**{key: float(value.nanmean()) for key, value in ours.items()}, **judges(model, probe, maps, size)}


def judges(model: nn.Module, probe: Probe, maps: Tensor, size: Size) -> dict[str, float]:
    """What captum's and Quantus' own code says of maps ``(N, h, w)``; NaN where one of them is not installed.

    Both are test dependencies (``pip install captum quantus``). captum's infidelity is Yeh's own, over other blocks
    than ours and with grey instead of a blurred copy; Quantus' pixel flipping is deletion with the image's mean.
    """
    height, width = probe.images.shape[2:]
    # Bilinear weights that share a cell out to its pixels: a map keeps its total where the grid divides the image.
    share = maps.shape[1] * maps.shape[2] / (height * width)
    pixels = share * F.interpolate(maps[:, None], size=(height, width), mode="bilinear", align_corners=False)
    return {
        "quantus": pixel_flipping(model, probe, pixels, size.steps) if find_spec("quantus") else float("nan"),
        "captum": captum_infidelity(model, probe, pixels, size.blocks) if find_spec("captum") else float("nan"),
    }


def captum_infidelity(model: nn.Module, probe: Probe, pixels: Tensor, blocks: int) -> float:
    """The infidelity that captum gives to pixel maps ``(N, 1, H, W)``."""
    from captum.metrics import infidelity

    shape = probe.images.shape[2:]
    masks = random_blocks(tuple(shape), blocks, SEED_OF_JUDGES)[:, None].repeat(len(pixels), 1, 1, 1)
    values = infidelity(
        model,
        lambda images: (masks.expand_as(images).float(), torch.where(masks, 0.0, images)),
        probe.images,
        # captum wants a value for each channel; a block takes all three away, and each gives a third of the sum.
        (pixels / probe.images.shape[1]).expand_as(probe.images),
        target=probe.target,
        n_perturb_samples=blocks,
    )
    return float(values.mean())


def pixel_flipping(model: nn.Module, probe: Probe, pixels: Tensor, steps: int) -> float:
    """The pixel flipping that Quantus gives to pixel maps ``(N, 1, H, W)``: the mean over the curve."""
    import quantus

    judge = quantus.PixelFlipping(
        features_in_step=pixels[0].numel() // steps,
        perturb_baseline="mean",
        abs=False,
        normalise=False,
        disable_warnings=True,
        display_progressbar=False,
    )
    curves = judge(
        model=model,
        x_batch=probe.images.numpy(),
        y_batch=probe.target.numpy(),
        a_batch=pixels.numpy().copy(),
        device="cpu",
        softmax=True,
    )
    return float(torch.tensor(curves).mean())


def study(size: Size, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One record for each method, layer, architecture and seed."""
    records: list[dict[str, Any]] = []
    for seed in range(size.seeds):
        train, val = DigitsOnTexture("train", size.copies, seed=seed), DigitsOnTexture("val", seed=seed)
        images, labels = normalised(train.images[: size.train]), train.labels[: size.train]
        rows = torch.linspace(0, len(val) - 1, size.images).long()
        some = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[: size.draws]
        probe = Probe(normalised(val.images[rows]), val.labels[rows], val.masks[rows], images[some])
        for name, architecture in ARCHITECTURES.items():
            model = fit(seeded(architecture, seed), images, labels, epochs=size.epochs, seed=seed)
            right = accuracy(model, normalised(val.images), val.labels)
            say(f"{name}, seed {seed}: trained, accuracy {right:.3f}")
            for depth, layer in architecture.layers.items():
                for method, perturbation in METHODS.items():
                    explainer = ExpectedGradCAM(model, layer, perturbation, num_samples=size.draws, seed=seed)
                    about = {"architecture": name, "seed": seed, "accuracy": right, "layer": depth, "method": method}
                    records.append({**about, **measure(model, explainer, probe, size)})
                say(f"{name}, seed {seed}, {depth} layer: {len(METHODS)} methods measured")
    return records


def cells(records: Sequence[dict[str, Any]]) -> Iterable[list[dict[str, Any]]]:
    """The records of all methods at one layer of one model, cell by cell."""
    for start in range(0, len(records), len(METHODS)):
        yield list(records[start : start + len(METHODS)])


def values_table(records: Sequence[dict[str, Any]], by: Sequence[str]) -> str:
    """Mean and spread of every number, one line for each value of the keys ``by``."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault(tuple(record[key] for key in by), []).append(record)
    rows = [[*group, *(mean_spread([r[key] for r in part]) for key in COLUMNS)] for group, part in groups.items()]
    return markdown([*by, *(title for title, _ in COLUMNS.values())], rows)


def ranks_table(records: Sequence[dict[str, Any]]) -> str:
    """The mean rank of each method among all, over layers, architectures and seeds; 1 is best, equals share a rank."""
    judged = {key: sign for key, (_, sign) in COLUMNS.items() if sign and records[0][key] == records[0][key]}
    rows: list[list[str]] = []
    for index, method in enumerate(METHODS):
        # Methods that are the same at a layer differ in the last bits: equal to three digits is equal.
        ranks = {
            key: [rankdata([-sign * float(f"{r[key]:.3g}") for r in cell])[index] for cell in cells(records)]
            for key, sign in judged.items()
        }
        rows.append([method, *(f"{sum(values) / len(values):.1f}" for values in ranks.values())])
    return markdown(["method", *(COLUMNS[key][0][:-2] for key in judged)], rows)


def claims(records: Sequence[dict[str, Any]]) -> str:
    """What the records say of the paper's claims."""
    lines = []
    for key, judge in (("yeh", "ours"), ("captum", "captum's")):
        if records[0][key] != records[0][key]:
            continue
        found = [spearmanr([r["gap"] for r in cell], [r[key] for r in cell]).statistic for cell in cells(records)]
        by_name = [{r["method"]: r[key] for r in cell} for cell in cells(records)]
        others = [min(value for name, value in cell.items() if name != OURS) for cell in by_name]
        alone = sum(1.001 * cell[OURS] < other for cell, other in zip(by_name, others, strict=True))
        best = sum(cell[OURS] <= 1.001 * other for cell, other in zip(by_name, others, strict=True))
        worse = sum(cell["SmoothGrad-CAM"] > 1.001 * cell["Grad-CAM"] for cell in by_name)
        lines += [
            f"- Rank correlation of completeness gap and infidelity ({judge}, Yeh's own) over the {len(METHODS)} "
            f"methods of a cell: {mean_spread(found, 2)}, from {min(found):.2f} to {max(found):.2f} "
            f"in {len(found)} cells.",
            f"- '{OURS}' has the lowest infidelity ({judge}) in {alone} of {len(by_name)} cells, and shares it within "
            f"0.1 % in {best - alone} more.",
            f"- SmoothGrad-CAM has a higher infidelity ({judge}) than Grad-CAM in {worse} of {len(by_name)} cells.",
        ]
    return "\n".join(lines) + "\n"


def draw(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Infidelity over completeness gap: every method, layer, architecture and seed a point."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    least = 1e-3
    colours = {**dict(zip(METHODS, colormaps["tab10"].colors, strict=False)), OURS: (0.0, 0.0, 0.0)}
    markers = dict(zip(ARCHITECTURES, "os", strict=True))
    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 1)
    for record in records:
        colour = colours[record["method"]]
        filled = record["layer"] == "last"
        axes.scatter(
            max(record["gap"], least),
            record["yeh"],
            s=34,
            marker=markers[record["architecture"]],
            facecolors=[colour] if filled else "none",
            edgecolors=[colour],
        )
    axes.set(xscale="log", yscale="log", xlabel=f"completeness gap (at least {least:g} is drawn)")
    axes.set_ylabel("infidelity, not normalised (squared logits)")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3)
    plain = partial(Line2D, [], [], linestyle="")
    handles = [plain(marker="o", color=colour, label=method) for method, colour in colours.items()]
    handles += [plain(marker=marker, color="grey", label=name) for name, marker in markers.items()]
    handles.append(plain(marker="o", color="grey", markerfacecolor="none", label="hollow: the earlier layer"))
    figure.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def write(records: Sequence[dict[str, Any]], size: Size, out: Path) -> None:
    """Write tables and figure."""
    right = {name: [r["accuracy"] for r in records if r["architecture"] == name] for name in ARCHITECTURES}
    at = {depth: [r for r in records if r["layer"] == depth] for depth in VGG.layers}
    text = [
        "# Methods compared\n",
        f"{size.seeds} seeds, {size.images} images, {size.draws} draws; accuracy "
        + ", ".join(f"{name} {mean_spread(values)}" for name, values in right.items())
        + ". Mean ± standard deviation over models; ↑ higher is better, ↓ lower.\n",
        *(f"## {depth} layer\n\n{values_table(part, ['method'])}" for depth, part in at.items()),
        f"## Mean rank\n\n{ranks_table(records)}",
        f"## Claims\n\n{claims(records)}",
        f"## By architecture\n\n{values_table(records, ['architecture', 'layer', 'method'])}",
    ]
    (out / "compare_on_digits.md").write_text("\n".join(text))
    write_csv(out / "compare_on_digits.csv", records)
    draw(records, out / "compare_on_digits.png")


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Run the study and write its tables and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/compare_on_digits"), help="where tables and figure go")
    parser.add_argument("--quick", action="store_true", help="a miniature that shows that it runs, and nothing else")
    args = parser.parse_args(argv)
    two_threads()
    say = Progress()
    args.out.mkdir(parents=True, exist_ok=True)
    size = QUICK if args.quick else Size()
    records = study(size, say)
    write(records, size, args.out)
    say(f"written to {args.out}")
    return records


if __name__ == "__main__":
    main()
