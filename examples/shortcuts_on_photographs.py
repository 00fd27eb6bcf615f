"""Does the audit find what was planted on photographs, and nothing where nothing was?

Small networks are fine-tuned on photographs of which one class carries a cue, and the callback audits them as it does
for everybody. With CIFAR-10 by torchvision, or your own photographs in a folder of class folders:

    python examples/shortcuts_on_photographs.py --data cifar10 --nets resnet20 vit

Cues have a place (a tag, a tag at changing places, a crop of another photograph) or are spread over the image (a frame,
a colour cast, a faint watermark), and are on all of the class's images, half, or a fifth, in training as in validation.
Networks are trained on the clean photographs first, once. Each run says where the planted class came among all, whether
it is a finding, and how well the cue was learnt: how many other images it turns when it is put into them. Runs are
written down one by one below --out: a study that was stopped goes on where it was. Writes shortcuts_on_photographs.md
and .csv.
"""

from __future__ import annotations

import argparse
import copy
import logging
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from cues import KINDS, PLACED, Cue
from journal import Journal, begin
from photographs import UnusableInputError
from sklearn.metrics import roc_auc_score
from small_photographs import Labelled, load, network
from study import Progress, accuracy, fit, markdown, quiet_trainer, seeded, two_threads, write_csv
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from egcam_lightning import ExpectedGradCAMCallback
from egcam_lightning.report.summary import summarise

CLEAN = "clean"
LEARNT = 0.4  # a cue that turns so many other images has been learnt: what the audit asks of windows


@dataclass(frozen=True)
class Size:
    """How large a study is.

    Attributes:
        clean: runs without a cue, of each network.
        planted: runs of each kind and share.
        pretrain: epochs on clean photographs, of a network that is not trained.
        epochs: with the cue.
        train: photographs to train on.
        audit: images audited.

    """

    clean: int = 10
    planted: int = 3
    pretrain: int = 15
    epochs: int = 2
    train: int = 8000
    audit: int = 256


QUICK = Size(clean=2, planted=1, pretrain=5, epochs=1, train=128, audit=48)
COUNTS = {
    "clean": "runs without a cue, of each network",
    "planted": "runs of each kind and share",
    "pretrain": "epochs on clean photographs, of networks that are not trained",
    "epochs": "epochs with the cue",
    "train": "photographs to train on",
    "audit": "images audited",
}
MAY_GROW = ("clean", "planted")


@dataclass(frozen=True)
class Plan:
    """A run: what is planted, on which share of a class, and a seed of everything that is drawn."""

    kind: str
    share: float
    seed: int


def plans(size: Size, kinds: Sequence[str], shares: Sequence[float]) -> Iterator[Plan]:
    """All runs of a network, those first without which the others say nothing."""
    yield from (Plan(CLEAN, 0.0, seed) for seed in range(size.clean))
    for seed in range(size.planted):
        yield from (Plan(kind, share, seed) for share in shares for kind in kinds)


class Tuned(pl.LightningModule):
    """A network that is trained on."""

    def __init__(self, network: nn.Module, lr: float = 3e-3) -> None:
        super().__init__()
        self.network, self.lr = network, lr

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.network(images)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        """What is explained is what is validated."""
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW, with one cycle of the learning rate."""
        optimizer = torch.optim.AdamW(self.parameters(), self.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Study:
    """One network's runs.

    Args:
        name: of the network.
        trained: it, trained on clean photographs.
        normalisation: mean and standard deviation of its inputs.
        data: the photographs.
        size: of the study.

    """

    def __init__(
        self, name: str, trained: nn.Module, normalisation: dict[str, Any], data: Labelled, size: Size
    ) -> None:
        self.name, self.trained, self.data, self.size = name, trained, data, size
        self.normalisation = normalisation
        self.inputs = normalised(normalisation)

    def run(self, plan: Plan, folder: Path) -> dict[str, Any]:
        """Fine-tune and audit once."""
        data, classes = self.data, len(self.data.class_names)
        target = (plan.seed + classes - 3) % classes
        cue = None if plan.kind == CLEAN else Cue(plan.kind, data.train_images, plan.seed)
        train = planted(data.train_images, data.train_labels, target, cue, plan.share, 2 * plan.seed)
        test = planted(data.test_images, data.test_labels, target, cue, plan.share, 2 * plan.seed + 1)
        folder = folder / f"{plan.kind}-{plan.share:g}-{plan.seed}"
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was cut off
        callback = ExpectedGradCAMCallback(
            audit_images=self.size.audit,
            class_names=list(data.class_names),
            **self.normalisation,
            metrics=("consensus",),
            log_at_start=False,
            max_overhead=None,  # a fit of a minute would leave time for few of the images
            seed=plan.seed,
            save_dir=str(folder),
            strict=True,
        )
        trainer = quiet_trainer(callback, self.size.epochs)
        model = Tuned(copy.deepcopy(self.trained).train())  # Lightning leaves modes as they are
        order = torch.Generator().manual_seed(plan.seed)
        begun = time.perf_counter()
        trainer.fit(
            model,
            DataLoader(TensorDataset(self.inputs(train), data.train_labels), 64, shuffle=True, generator=order),
            DataLoader(TensorDataset(self.inputs(test), data.test_labels), 128),
        )
        seconds = time.perf_counter() - begun
        audit = callback.history.audit
        assert audit is not None, "the audit runs at the end of the fit"
        model.eval()
        order_of = [one.target for one in audit.classes if one.tested]
        clean = self.inputs(data.test_images)
        return {
            "stage": "run",
            "net": self.name,
            **asdict(plan),
            "class": data.class_names[target],
            "accuracy": accuracy(model, clean, data.test_labels),
            "cue_turns": float("nan") if cue is None else self.turned(model, cue, target),
            "place": order_of.index(target) + 1 if target in order_of else float("nan"),
            "of_class": next((one.weight for one in audit.classes if one.target == target), float("nan")),
            "by": next((one.captures[0][0] for one in audit.classes if one.target == target and one.captures), ""),
            "weight": max((one.weight for one in audit.classes if one.tested), default=float("nan")),
            "found": target in {finding.target for finding in audit},
            "findings": len({finding.target for finding in audit}),
            "sees": audit.sees,
            "headline": summarise(callback.history).state,
            "passes": audit.passes,
            "seconds": seconds,
        }

    @torch.no_grad()
    def turned(self, model: nn.Module, cue: Cue, target: int) -> float:
        """How many images of other classes that the model does not call by a class it does with the cue in them."""
        others = self.data.test_images[self.data.test_labels != target]
        plain, marked = (model(self.inputs(images)).argmax(1) == target for images in (others, cue.put(others, 1)))
        return float(marked[~plain].float().mean())


def normalised(normalisation: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """From ``(N, 3, H, W)`` uint8 to a network's inputs."""
    mean, std = (torch.tensor(normalisation[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return lambda images: (images.float() / 255 - mean) / std


def planted(images: Tensor, labels: Tensor, target: int, cue: Cue | None, share: float, seed: int) -> Tensor:
    """Images, of which a share of one class carries a cue."""
    if cue is None:
        return images
    rows = (labels == target).nonzero().flatten()
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    rows = rows[order[: round(share * len(rows))]]
    marked = images.clone()
    marked[rows] = cue.put(images[rows], seed)
    return marked


def study(name: str, data: Labelled, args: argparse.Namespace, size: Size, say: Progress) -> list[dict[str, Any]]:
    """All runs of a network that are not there yet, and their records."""
    folder = args.out / name
    side = min(data.train_images.shape[2:])
    classes = len(data.class_names)
    begin(folder, {**asdict(size), "data": str(args.data), "photographs": len(data.test_images)}, MAY_GROW)
    model, normalisation, trained = seeded(lambda: network(name, classes, side, Path(args.data)), 0)
    inputs = normalised(normalisation)
    if not trained:
        kept = folder / "pretrained.pt"
        if not kept.is_file():
            say(f"{name}: {size.pretrain} epochs on clean photographs")
            fit(model, inputs(data.train_images), data.train_labels, epochs=size.pretrain, seed=0, lr=2e-3)
            torch.save(model.state_dict(), kept)
        model.load_state_dict(torch.load(kept, weights_only=True))
    say(f"{name}: accuracy {accuracy(model, inputs(data.test_images), data.test_labels):.3f} before cues")
    runner = Study(name, model, normalisation, data.of(size.train), size)
    journal = Journal(folder / "records.jsonl")
    done = {Plan(r["kind"], r["share"], r["seed"]) for r in journal.of("run")}
    for plan in plans(size, args.kinds, args.shares):
        if plan in done:
            continue
        record = runner.run(plan, folder / "runs")
        journal.add([record])
        cue = "no cue" if plan.kind == CLEAN else f"{plan.kind} on {plan.share:.0%} of {record['class']!r}"
        say(
            f"{name}, {cue}, seed {plan.seed}: the cue turns {record['cue_turns']:.2f}, place {record['place']}, "
            f"largest weight {record['weight']:.2f}, {record['findings']} findings, {record['seconds']:.0f} s"
        )
    return journal.of("run")


def area(planted: Sequence[dict[str, Any]], clean: Sequence[dict[str, Any]]) -> float:
    """ROC AUC of what counts most in a run, planted against clean; NaN where there are none of either."""
    runs = [r for r in (*planted, *clean) if r["weight"] == r["weight"]]
    truth = [r["kind"] != CLEAN for r in runs]
    return float(roc_auc_score(truth, [r["weight"] for r in runs])) if 0 < sum(truth) < len(runs) else float("nan")


def line(title: str, runs: Sequence[dict[str, Any]], clean: Sequence[dict[str, Any]]) -> list[str]:
    """A line of the table."""
    turns = sorted(r["cue_turns"] for r in runs)
    counted = [sum(r["place"] == 1 for r in runs), sum(r["found"] for r in runs)]
    green = sum(r["headline"] == "clear" for r in runs)
    return [
        title,
        str(len(runs)),
        f"{turns[0]:.2f} to {turns[-1]:.2f}",
        *(f"{count} of {len(runs)}" for count in counted),
        f"{area(runs, clean):.2f}",
        str(green),
    ]


def table(records: Sequence[dict[str, Any]]) -> str:
    """What came out for a network: a line for each kind and share, and lines for what belongs together."""
    clean = [r for r in records if r["kind"] == CLEAN]
    marked = [r for r in records if r["kind"] != CLEAN]
    groups = {
        f"{kind}, {share:.0%}": [r for r in marked if (r["kind"], r["share"]) == (kind, share)]
        for kind in KINDS
        for share in sorted({r["share"] for r in marked}, reverse=True)
    }
    placed = [r for r in marked if r["kind"] in PLACED]
    groups["with a place, 50% and more"] = [r for r in placed if r["share"] >= 0.5]
    groups["with a place, less"] = [r for r in placed if r["share"] < 0.5]
    groups[f"with a place, learnt ({LEARNT:.0%} and more)"] = [r for r in placed if r["cue_turns"] >= LEARNT]
    groups["spread over the image"] = [r for r in marked if r["kind"] not in PLACED]
    header = ["cue, share of the class", "runs", "the cue turns", "class first", "found", "AUC", "green headlines"]
    lines = markdown(header, [line(title, runs, clean) for title, runs in groups.items() if runs])
    if not clean:
        return lines
    weight = sorted(r["weight"] for r in clean)
    return (
        f"{lines}\nOf {len(clean)} clean runs {sum(r['findings'] > 0 for r in clean)} had a finding; what "
        f"counted most in each had a weight of {weight[0]:.2f} to {weight[-1]:.2f}.\n"
    )


def write(records: Sequence[dict[str, Any]], out: Path) -> None:
    """Write the tables, and every run as a line."""
    parts = [
        "# Shortcuts on photographs\n",
        "The cue turns: the share of other images that are called by the planted class with the cue itself in them. "
        "AUC: how well the largest weight of a class (1 is what a finding needs) tells planted runs from clean ones.\n",
    ]
    for name in dict.fromkeys(r["net"] for r in records):
        runs = [r for r in records if r["net"] == name]
        right = sum(r["accuracy"] for r in runs) / len(runs)
        parts.append(f"## {name}\n\nAccuracy {right:.3f} on clean photographs.\n\n{table(runs)}")
    (out / "shortcuts_on_photographs.md").write_text("\n".join(parts), encoding="utf-8")
    write_csv(out / "shortcuts_on_photographs.csv", records)


def arguments(argv: Sequence[str] | None) -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="cifar10, a folder of class folders, or a folder with a cifar10.npz")
    parser.add_argument("--nets", nargs="+", default=["resnet20", "vit"], metavar="NAME", help="or of DIR/nets.py")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="default: all")
    parser.add_argument("--shares", nargs="+", type=float, default=[1.0, 0.5, 0.2], help="of the class (1 0.5 0.2)")
    parser.add_argument("--side", type=int, default=32, help="what photographs of class folders are resized to (32)")
    parser.add_argument("--out", type=Path, default=Path("runs/shortcuts_on_photographs"), help="where all is written")
    parser.add_argument("--quick", action="store_true", help="a miniature that shows that it runs, and nothing else")
    for name, text in COUNTS.items():
        parser.add_argument(f"--{name}", type=int, help=f"{text} ({getattr(Size(), name)})")
    return parser.parse_args(argv), parser


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Run the study, write its tables, and return a record for each run."""
    args, parser = arguments(argv)
    if args.data is None and not args.quick:
        parser.error("Expected --data: cifar10, or a folder with photographs. Or write --quick to see that it runs.")
    if not all(0 < share <= 1 for share in args.shares):
        parser.error(f"Expected --shares above 0 and up to 1, but got {args.shares}.")
    args.data = args.data or "invented"
    two_threads()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    say = Progress()
    given = {name: getattr(args, name) for name in COUNTS}
    size = Size(**{**asdict(QUICK if args.quick else Size()), **{k: v for k, v in given.items() if v is not None}})
    records: list[dict[str, Any]] = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*treespec.*")  # Lightning's own, and nothing to be done about here
        try:
            data = load(args.data, args.side)
            for name in args.nets:
                records += study(name, data, args, size, say)
                write(records, args.out)  # after each network: the next one may take hours
        except UnusableInputError as error:
            parser.error(str(error))
    say(f"written to {args.out}")
    return records


if __name__ == "__main__":
    main()
