"""Can the curves tell that a model takes a shortcut? Clean and planted runs, told apart without looking at a map.

Networks learn handwritten digits from images where nothing, or something else than the digit, gives the label away: a
tag in a corner, a frame, a tag in one of four corners, a colour cast over the whole image. Each is watched by the
callback, and the ROC AUC says how well each number tells planted runs from clean ones after each epoch. Writes
``clever_hans.md``, ``.csv`` and ``.png``. What the audit finds of cues on photographs is measured by
``shortcuts_on_photographs.py``.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from digits import NUM_CLASSES, SmallCNN, block
from shortcuts import SHORTCUTS, PlantedData
from sklearn.metrics import roc_auc_score
from study import Progress, accuracy, markdown, mean_spread, normalised, quiet_trainer, seeded, two_threads, write_csv
from torch import Tensor, nn

from egcam_lightning import ExpectedGradCAMCallback, Snapshot
from egcam_lightning.metrics.functional import consensus_null, relevance_mass

KINDS = ("clean", *SHORTCUTS)
NAMES = {
    "clean": "none",
    "tag": "tag in a corner",
    "frame": "frame",
    "places": "tag in one of four corners",
    "cast": "colour cast",
}
# Title, and where a shortcut is suspected before anything is measured: at high (1) or at low (-1) values.
STATISTICS = {
    "consensus": ("consensus", 1),
    "recurrence": ("recurrence", 1),
    "drift/previous": ("drift, previous", -1),
    "drift/reference": ("drift, reference", -1),
    "drift/significant": ("drift, significant", -1),
    "complexity": ("complexity", -1),
    "relevance_mass": ("relevance mass", -1),
}
GOOD = 0.95  # an AUC from which a number is said to tell runs apart


@dataclass(frozen=True)
class Size:
    """How large a study is.

    Attributes:
        clean: runs without a shortcut.
        planted: runs with a shortcut, of each kind.
        copies: how often each training digit is there.
        batches: of 64 images, in an epoch at most.
        epochs: of a run.
        images: explained.
        draws: an image, and as many baselines.

    """

    clean: int = 10
    planted: int = 5
    copies: int = 2
    batches: int | None = None
    epochs: int = 4
    images: int = 48
    draws: int = 32


QUICK = Size(clean=2, planted=1, copies=1, batches=12, epochs=2, images=16, draws=8)


class TinyCNN(SmallCNN):
    """The quickstart's network with half of its channels: a run takes seconds."""

    def __init__(self) -> None:
        super().__init__(lr=5e-3)
        self.features = nn.Sequential(
            block(3, 16, stride=2), block(16, 32, stride=2), block(32, 48), block(48, 64, stride=2), block(64, 64)
        )
        self.classifier = nn.Linear(64, NUM_CLASSES)


def observe(snapshot: Snapshot, planted: Tensor | None) -> dict[str, float]:
    """The numbers of one snapshot; NaN for what has no value there."""
    values = {key: snapshot.metrics.get(key, float("nan")) for key in STATISTICS}
    on_shortcut = float("nan") if planted is None else float(relevance_mass(snapshot.attribution, planted).nanmean())
    return {**values, "on_shortcut": on_shortcut}


def run(kind: str, seed: int, size: Size, out: Path) -> list[dict[str, Any]]:
    """Train once, and give one record for each epoch."""
    data = PlantedData(None if kind == "clean" else kind, size.copies, seed)
    rows = torch.linspace(0, len(data.val) - 1, size.images).long()
    images, labels = normalised(data.val.images), data.val.labels
    probe = {"image": images[rows], "label": labels[rows], "mask": data.val.masks[rows]}
    callback = ExpectedGradCAMCallback(
        num_images=size.images,
        num_baselines=size.draws,
        num_samples=size.draws,
        metrics=("consensus", "recurrence", "complexity", "relevance_mass"),
        probe=probe,
        masks_key="mask",
        log_at_start=False,
        max_overhead=None,
        seed=seed,
        save_dir=str(out / "runs" / f"{kind}-{seed}"),
        strict=True,
    )
    trainer = quiet_trainer(callback, size.epochs, limit_train_batches=size.batches)
    model = seeded(TinyCNN, seed)
    trainer.fit(model, datamodule=data)
    planted = None if data.val.planted is None else data.val.planted[rows]
    about = {
        "kind": kind,
        "seed": seed,
        "accuracy": accuracy(model, images, labels),
        "accuracy_without": accuracy(model, normalised(data.val.bare), labels),
        "mask_share": float(data.val.masks[rows].float().mean()),
        "shortcut_share": float("nan") if planted is None else float(planted.float().mean()),
    }
    null = consensus_null(probe["mask"], labels[rows], tuple(callback.history[0].attribution.shape[1:]))
    about["consensus_null"] = float("nan") if null is None else float(null)
    return [{**about, "epoch": s.epoch + 1, **observe(s, planted)} for s in callback.history.snapshots]


def area(records: Sequence[dict[str, Any]], kind: str, epoch: int, key: str) -> float:
    """ROC AUC of one number between the clean runs and those of ``kind``; ``"any"``: all planted runs.

    Above 0.5, planted runs lie where a shortcut was suspected; below, on the other side. NaN where there is no value.
    """
    chosen = [r for r in records if r["epoch"] == epoch and (kind == "any" or r["kind"] in ("clean", kind))]
    values = [STATISTICS[key][1] * r[key] for r in chosen]
    if any(value != value for value in values):
        return float("nan")
    return float(roc_auc_score([r["kind"] != "clean" for r in chosen], values))


def areas_table(records: Sequence[dict[str, Any]], epochs: int) -> str:
    """AUC after the last epoch, and the epoch from which on it stays good, one line a number."""
    rows = []
    for key, (title, sign) in STATISTICS.items():
        row = [title, "high" if sign > 0 else "low"]
        for kind in (*SHORTCUTS, "any"):
            course = [area(records, kind, epoch, key) for epoch in range(1, epochs + 1)]
            since = next((e for e in range(1, epochs + 1) if all(a >= GOOD for a in course[e - 1 :])), None)
            row.append(f"{course[-1]:.2f}" + (f" (from epoch {since})" if since else ""))
        rows.append(row)
    return markdown(["number", "suspected when", *(NAMES[kind] for kind in SHORTCUTS), "any of them"], rows)


def values_table(records: Sequence[dict[str, Any]], epochs: int) -> str:
    """Every number after the last epoch, mean and spread over runs, one line a kind."""
    last = [r for r in records if r["epoch"] == epochs]
    columns = {
        "accuracy": "accuracy",
        "accuracy_without": "without the shortcut",
        **{key: title for key, (title, _) in STATISTICS.items()},
        "mask_share": "uniform map: relevance mass",
        "on_shortcut": "relevance on the shortcut",
        "shortcut_share": "uniform map: on the shortcut",
    }
    rows = []
    for kind in KINDS:
        part = [r for r in last if r["kind"] == kind]
        rows.append([f"{NAMES[kind]} ({len(part)} runs)", *(mean_spread([r[key] for r in part], 2) for key in columns)])
    return markdown(["shortcut", *columns.values()], rows)


def draw(records: Sequence[dict[str, Any]], epochs: int, path: Path) -> None:
    """Above: AUC over epochs for each kind of shortcut. Below: the values behind it, run by run."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = ("consensus", "recurrence", "drift/previous", "relevance_mass")
    colours = colormaps["tab10"].colors
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 4)
    for axis, kind in zip(axes[0], SHORTCUTS, strict=True):
        for place, (key, colour) in enumerate(zip(shown, colours, strict=False)):
            course = [area(records, kind, epoch, key) for epoch in range(1, epochs + 1)]
            # Thick below thin: many of them coincide at 1.
            style = {"color": colour, "lw": 7 - 2 * place, "ms": 9 - 2 * place, "label": STATISTICS[key][0]}
            axis.plot(range(1, epochs + 1), course, "o-", **style)
        axis.axhline(0.5, color="grey", lw=0.8, ls=":")
        axis.set(title=NAMES[kind], xlabel="epoch", ylim=(-0.05, 1.05), xticks=range(1, epochs + 1))
    axes[0][0].set_ylabel("ROC AUC against clean runs")
    axes[0][0].legend(fontsize=8, loc="lower right")
    last = [r for r in records if r["epoch"] == epochs]
    for axis, key, colour in zip(axes[1], shown, colours, strict=False):
        for place, kind in enumerate(KINDS):
            values = [r[key] for r in last if r["kind"] == kind]
            axis.scatter([place] * len(values), values, s=16, color=colour, alpha=0.6)
        axis.set(title=f"{STATISTICS[key][0]}, epoch {epochs}", xticks=range(len(KINDS)))
        axis.set_xticklabels(KINDS, fontsize=8)
        axis.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=100)


def study(size: Size, out: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One record for each epoch of each run."""
    records: list[dict[str, Any]] = []
    for kind in KINDS:
        for seed in range(size.clean if kind == "clean" else size.planted):
            records += run(kind, seed, size, out)
            last = records[-1]
            say(
                f"{NAMES[kind]}, seed {seed}: accuracy {last['accuracy']:.2f}, without the shortcut "
                f"{last['accuracy_without']:.2f}, consensus {last['consensus']:.2f}, recurrence "
                f"{last['recurrence']:.2f}, relevance mass {last['relevance_mass']:.2f}"
            )
    return records


def write(records: Sequence[dict[str, Any]], size: Size, out: Path) -> None:
    """Write tables and figure."""
    null = mean_spread([r["consensus_null"] for r in records if r["kind"] == "clean" and r["epoch"] == 1], 2)
    text = [
        "# Clever Hans\n",
        f"{size.clean} clean runs and {size.planted} of each kind of shortcut, {size.epochs} epochs, "
        f"{size.images} images explained, {size.draws} draws.\n",
        f"## ROC AUC after epoch {size.epochs}\n\nAbove 0.5: planted runs lie where they were suspected; below: on the "
        f"other side. In brackets: from when on it stays at {GOOD:g} or above. Relevance mass needs masks of the "
        f"object, the others need none.\n\n{areas_table(records, size.epochs)}",
        f"## Values after epoch {size.epochs}\n\n{values_table(records, size.epochs)}",
        f"Consensus of maps that lie evenly on the digits (the null): {null}.\n",
    ]
    (out / "clever_hans.md").write_text("\n".join(text))
    write_csv(out / "clever_hans.csv", records)
    draw(records, size.epochs, out / "clever_hans.png")


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Run the study and write its tables and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/clever_hans"), help="where tables and figure go")
    parser.add_argument("--quick", action="store_true", help="a miniature that shows that it runs, and nothing else")
    args = parser.parse_args(argv)
    two_threads()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    say = Progress()
    args.out.mkdir(parents=True, exist_ok=True)
    size = QUICK if args.quick else Size()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*treespec.*")  # Lightning's own, and nothing to be done about here
        records = study(size, args.out, say)
    write(records, size, args.out)
    say(f"written to {args.out}")
    return records


if __name__ == "__main__":
    main()
