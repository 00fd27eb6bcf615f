"""Draw what the numbers mean: of each an example where it is good, and one where it is bad; and a path of gradients.

    python examples/four_runs.py --only healthy shortcut && python examples/good_and_bad.py

Takes the networks that the first command has trained. Writes `numbers.png` and `path.png`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from digits import DigitsData, SmallCNN
from matplotlib import pyplot as plt
from torch import Tensor
from torch.nn.functional import interpolate

from egcam_lightning import Draws, ExpectedGradCAM, History, Perturbation
from egcam_lightning.metrics import functional as F

Example = tuple[Tensor, Tensor, str]  # a picture (H, W, 3), a map (h, w), and what is said of them
HEALTHY, SHORTCUT = "healthy", "shortcut"


class Run:
    """A trained network, its validation images, and what its run has left."""

    def __init__(self, folder: Path) -> None:
        self.network = SmallCNN.load_from_checkpoint(folder / "last.ckpt", map_location="cpu").eval()
        self.history = History.load(folder / "egcam")
        data = DigitsData(shortcut=folder.name == SHORTCUT, copies=1)
        data.setup()
        self.digits = data.val
        self.baselines = torch.stack([data.train[k]["image"] for k in range(0, 80, 10)])
        self.score = F.class_scores(self.network)
        self.probability = F.class_scores(self.network, softmax=True)

    def image(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """One validation image as the network takes it, its class, and as people see it."""
        pixels = self.digits.images[index].movedim(0, -1)
        return self.digits[index]["image"][None], self.digits.labels[index : index + 1], pixels

    def explain(self, index: int, **settings: object) -> tuple[Tensor, float]:
        """A map, and its completeness gap."""
        image, target, _ = self.image(index)
        found = ExpectedGradCAM(self.network, **settings)(image, self.baselines, target)  # type: ignore[arg-type]
        return found.attribution, float(found.completeness_gap)


def numbers(healthy: Run, shortcut: Run, index: int) -> dict[str, tuple[Example, Example]]:
    """Of each number a good example and a bad one."""
    image, target, pixels = healthy.image(index)
    tagged = shortcut.image(index)[2]
    good, gap = healthy.explain(index, target_layer="features.3")
    pooled, far = healthy.explain(index, target_layer="features.3", weighting="channel")
    turned = -good  # what speaks against the class, as if it spoke for it

    def pair(name: str, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], values: object) -> None:
        one, other = (float(value) for value in values)  # type: ignore[attr-defined]
        rows[name] = ((*first, f"{one:.2f}"), (*second, f"{other:.2f}"))

    rows: dict[str, tuple[Example, Example]] = {}
    pair("completeness gap", (pixels, good[0]), (pixels, pooled[0]), (gap, far))
    of = {"score_fn": healthy.score, "images": image, "target": target}
    pair(
        "infidelity",
        (pixels, good[0]),
        (pixels, turned[0]),
        (F.infidelity(**of, attribution=one) for one in (good, turned)),
    )
    of["score_fn"] = healthy.probability
    for name, metric in {"insertion AUC": F.insertion_auc, "deletion AUC": F.deletion_auc}.items():
        pair(name, (pixels, good[0]), (pixels, turned[0]), (metric(**of, attribution=one) for one in (good, turned)))
    last, last_tagged = healthy.history[-1], shortcut.history[-1]
    means = [positive_mean(one.attribution) for one in (last, last_tagged)]
    greys = [run.history.probe.images.float().mean(0).to(torch.uint8) for run in (healthy, shortcut)]
    values = [one.metrics["consensus"] for one in (last, last_tagged)]
    pair("consensus (mean map)", (greys[0], means[0]), (greys[1], means[1]), values)
    own = shortcut.explain(index)[0]
    masks = (healthy.digits.masks[index][None], shortcut.digits.masks[index][None])
    mass = [F.relevance_mass(one, mask)[0] for one, mask in zip((good, own), masks, strict=True)]
    pair("relevance mass", (pixels, good[0]), (tagged, own[0]), mass)
    untrained = healthy.history[0].attribution
    place = int(F.complexity(untrained).argmax())
    before = healthy.history.probe.images[place]
    after = last.attribution[place]
    both = torch.stack([after, untrained[place]])
    pair("complexity", (before, both[0]), (before, both[1]), F.complexity(both))
    return rows


def positive_mean(maps: Tensor) -> Tensor:
    """The mean of the positive parts, each by its own maximum."""
    positive = maps.clamp(min=0)
    return (positive / positive.amax((1, 2), keepdim=True)).mean(0)


def show(axis: plt.Axes, picture: Tensor, attribution: Tensor | None, title: str = "") -> None:
    """A picture with its map over it."""
    axis.imshow(picture)
    if attribution is not None:
        heat = interpolate(attribution.clamp(min=0)[None, None], picture.shape[:2], mode="bilinear")[0, 0]
        heat = heat / heat.max().clamp(min=1e-12)
        axis.imshow(heat, cmap="inferno", alpha=0.75 * heat.numpy(), vmin=0, vmax=1)
    axis.set_title(title, fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])


def draw_numbers(rows: dict[str, tuple[Example, Example]], path: Path) -> None:
    """Two rows of pictures, the good ones above the bad ones."""
    figure, axes = plt.subplots(2, len(rows), figsize=(1.45 * len(rows), 3.5))
    for column, (name, examples) in zip(axes.T, rows.items(), strict=True):
        for axis, (picture, attribution, value) in zip(column, examples, strict=True):
            show(axis, picture, attribution, value)
        column[0].set_title(f"{name}\n{examples[0][2]}", fontsize=9)
    for axis, label in zip(axes[:, 0], ("better", "worse"), strict=True):
        axis.set_ylabel(label, fontsize=10)
    save(figure, path)


def draw_path(run: Run, index: int, path: Path) -> None:
    """The way from a baseline to an image, the map of the gradient at each place, and their mean."""
    image, target, _ = run.image(index)
    with torch.no_grad():
        other = (run.network(run.baselines).argmax(1) != target).nonzero()[0]
    baseline = run.baselines[other]
    places = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    draws = Draws(torch.zeros(len(places), 1, dtype=torch.int64), places[:, None])
    along = ExpectedGradCAM(run.network)(image, baseline, target, draws=draws)
    whole = ExpectedGradCAM(run.network, num_samples=32)(image, run.baselines, target)
    plain = ExpectedGradCAM(run.network, perturbation=Perturbation.grad_cam())(image, target=target)
    points = baseline + places.view(-1, 1, 1, 1) * (image - baseline)
    pictures = ((0.25 * points + 0.5).clamp(0, 1) * 255).to(torch.uint8).movedim(1, -1)
    figure, axes = plt.subplots(2, 7, figsize=(10, 3.3))
    for axis, picture, place in zip(axes[0], pictures, places, strict=False):
        name = {0.0: "baseline", 1.0: "image"}.get(float(place), f"t = {place:g}")
        show(axis, picture, None, name)
    for axis, picture, attribution in zip(axes[1], pictures, along.draws[:, 0], strict=False):
        show(axis, picture, attribution, f"adds up to {float(attribution.sum()):.1f}")
    for axis in axes[0, 5:]:
        axis.axis("off")
    difference = float(whole.score - whole.baseline_score)
    show(axes[1, 5], pictures[-1], whole.attribution[0], f"mean of 32: {float(whole.attribution.sum()):.1f}")
    axes[0, 5].text(0.5, 0.1, f"the scores\ndiffer by {difference:.1f}", ha="center", fontsize=9)
    show(axes[1, 6], pictures[-1], plain.attribution[0], "Grad-CAM")
    save(figure, path)


def save(figure: plt.Figure, path: Path) -> None:
    """Write a figure, as small as a palette makes it."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout(pad=0.4)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(192, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"written to {path}")


def main(argv: list[str] | None = None) -> None:
    """Draw both figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/four"), help="where four_runs.py has left its runs")
    parser.add_argument("--image", type=int, default=30, help="which of the validation images is explained")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/figures"), help="folder for the figures")
    args = parser.parse_args(argv)
    missing = [name for name in (HEALTHY, SHORTCUT) if not (args.runs / name / "last.ckpt").is_file()]
    if missing:
        parser.error(f"there is no run in {args.runs / missing[0]}: python examples/four_runs.py --out {args.runs}")
    healthy, shortcut = Run(args.runs / HEALTHY), Run(args.runs / SHORTCUT)
    draw_numbers(numbers(healthy, shortcut, args.image), args.output / "numbers.png")
    draw_path(healthy, args.image, args.output / "path.png")


if __name__ == "__main__":
    main()
