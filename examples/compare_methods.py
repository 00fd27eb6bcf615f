"""Compare Expected Grad-CAM with other CAMs on pretrained networks and photographs.

With torchvision's or timm's weights and an ImageNet validation folder (one folder a class, or files and --labels):

    python examples/compare_methods.py --nets resnet50 mobilenet_v2 deit_tiny_patch16_224 --images imagenet/val

Photographs that the network gets right are explained, for their class. On the first of them (--choose) every method is
tried at each layer of the network and judged by insertion minus deletion; on others (--compare) each is judged at its
own best layer and at ours. What is measured is written photograph by photograph below --out: a study that was stopped
goes on where it was, and nothing is done twice. Writes compare_methods.md, .csv, and a sheet of photographs a network.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import cams
import judges
import torch
from cams import AUTO, OURS, Explainers, Row
from comparison import best_layers, choice_table, draw_sheet, summary, tables, verdicts
from journal import Journal, begin
from photographs import Net, Photograph, UnusableInputError, load
from study import Progress, two_threads, write_csv

BASELINES = 8  # the callback's default


@dataclass(frozen=True)
class Size:
    """How large a study is.

    Attributes:
        choose: photographs that layers are chosen on.
        compare: photographs of the comparison.
        further: photographs of it that ours at each layer, and others at our layer, are judged on by our metrics.
        expensive: photographs of it that ScoreCAM, AblationCAM and RISE are judged on, too.
        samples: draws an image; ``None`` for the package's default.
        steps: of insertion, deletion and pixel flipping.
        blocks: of infidelity.
        masks: of RISE.
        sheet: photographs on the sheet.
        batch: photographs that are explained at once.

    """

    choose: int = 40
    compare: int = 200
    further: int = 100
    expensive: int = 0
    samples: int | None = None
    steps: int = 10
    blocks: int = 24
    masks: int = 500
    sheet: int = 8
    batch: int = 8


QUICK = Size(choose=2, compare=3, further=2, samples=4, steps=3, blocks=4, masks=16, sheet=2, batch=4)
COUNTS = {
    "choose": "photographs that layers are chosen on",
    "compare": "photographs of the comparison",
    "further": "of these, how many ours at each layer and others at our layer are judged on",
    "expensive": "of these, how many ScoreCAM, AblationCAM and RISE are judged on as well",
    "steps": "points of insertion, deletion and pixel flipping",
    "samples": "draws an image, instead of the package's default",
    "batch": "photographs that are explained at once",
}
# What may grow when a study goes on: the photographs before stay the same.
MAY_GROW = ("compare", "further", "expensive", "sheet", "batch")


def in_order(photographs: Sequence[Photograph]) -> list[Photograph]:
    """The same order every time, with the classes mixed."""
    order = torch.randperm(len(photographs), generator=torch.Generator().manual_seed(0))
    return [photographs[int(row)] for row in order]


def right_ones(net: Net, candidates: Sequence[Photograph], wanted: int, path: Path) -> tuple[list[Photograph], float]:
    """The first photographs whose class the network gives, and its accuracy on those that were looked at.

    Args:
        net: the network.
        candidates: in the order in which they are looked at.
        wanted: how many; fewer where there are no more.
        path: of a file that remembers which are right.

    """
    known: dict[str, bool] = json.loads(path.read_text()) if path.is_file() else {}
    found: list[Photograph] = []
    seen = 0
    while len(found) < wanted and seen < len(candidates):
        part = candidates[seen : seen + 16]
        new = [photograph for photograph in part if photograph.name not in known]
        if new:
            with torch.no_grad():
                predicted = net.model(net.images(new)).argmax(1).tolist()
            known |= {p.name: k == p.label for p, k in zip(new, predicted, strict=True)}
            path.write_text(json.dumps(known))
        found += [photograph for photograph in part if known[photograph.name]]
        seen += len(part)
    return found[:wanted], sum(known[p.name] for p in candidates[:seen]) / max(1, seen)


def rows_to_choose(net: Net, *, expensive: bool) -> list[Row]:
    """Every method that has a layer, at each."""
    methods = [*cams.FAMILY, *cams.available()]
    kept = [method for method in methods if cams.is_expensive(method) == expensive]
    return [Row(method, layer) for method in kept for layer in net.layers]


def rows_to_compare(best: dict[str, str], *, expensive: bool) -> list[Row]:
    """Every other method at its own best layer, beside ours with default arguments and a random map."""
    own = [Row(method, layer) for method, layer in best.items() if method != OURS]
    own = [row for row in own if cams.is_expensive(row.method) == expensive]
    return [*own, Row(cams.RISE)] if expensive else [Row(OURS, AUTO), *own, Row(cams.RANDOM)]


def rows_further(net: Net, best: dict[str, str]) -> list[Row]:
    """Ours at each layer and pair of layers, and the other methods at the layer where a single map of ours is best."""
    ours = [Row(OURS, layer) for layer in (*net.layers, *("+".join(pair) for pair in net.pairs))]
    others = [method for method in best if method != OURS and not cams.is_expensive(method)]
    return [*ours, *(Row(method, best[OURS]) for method in others if best[method] != best[OURS])]


class Study:
    """One network's study: explains batches of photographs, judges them one by one, and writes down what it finds.

    Args:
        net: the network.
        explainers: of its maps.
        journal: where records go.
        size: of the study.
        judged_by: the judges of the comparison.
        say: prints a line.

    """

    def __init__(
        self,
        net: Net,
        explainers: Explainers,
        journal: Journal,
        size: Size,
        judged_by: Sequence[str],
        say: Callable[[str], None],
    ) -> None:
        self.net, self.explainers, self.journal, self.size, self.say = net, explainers, journal, size, say
        # Layers are chosen by the order of pixels alone; what is looked at further, by ours.
        self.judged_by = {"choose": ("order",), "compare": tuple(judged_by), "further": (judges.OURS,)}
        self.judged = judges.sooner(net.model, explainers.baselines[:2])

    def stage(self, name: str, photographs: Sequence[Photograph], rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Measure what is missing of a stage, and return all of its records."""
        done = {(r["photograph"], r["method"], r["layer"]) for r in self.journal.of(name)}
        todo = {p.name: [row for row in rows if (p.name, row.method, row.layer) not in done] for p in photographs}
        total = sum(map(len, todo.values()))
        begun, finished = time.perf_counter(), 0
        # Photographs that lack the same rows go together; where a study goes on, some may lack fewer.
        for lacking, group in groupby(photographs, key=lambda photograph: todo[photograph.name]):
            alike = list(group) if lacking else []
            for start in range(0, len(alike), self.size.batch):
                for photograph, records in self._measured(name, alike[start : start + self.size.batch], lacking):
                    self.journal.add(records)
                    finished += len(records)
                    rest = (time.perf_counter() - begun) / finished * (total - finished)
                    self.say(
                        f"{self.net.name}, {name}: {photograph.name}, {finished} of {total} maps, "
                        f"about {rest / 60:.0f} min left"
                    )
        return self.journal.of(name)

    def _measured(
        self, name: str, batch: Sequence[Photograph], rows: Sequence[Row]
    ) -> Iterator[tuple[Photograph, list[dict[str, Any]]]]:
        images, target = self.net.images(batch), torch.tensor([photograph.label for photograph in batch])
        maps = self.explainers(rows, images, target, [_seed(photograph) for photograph in batch])
        for place, photograph in enumerate(batch):
            values = judges.judge(
                self.judged,
                images[place : place + 1],
                target[place : place + 1],
                [maps[row].values[place] for row in rows],
                self.judged_by[name],
                self.size.steps,
                self.size.blocks,
            )
            records = []
            for row, numbers in zip(rows, values, strict=True):
                found = maps[row]
                record = {"stage": name, "photograph": photograph.name, **asdict(row), **numbers}
                record["seconds"] = found.seconds
                if row.method == OURS and found.missing is not None and found.difference is not None:
                    record |= {"missing": float(found.missing[place]), "difference": float(found.difference[place])}
                records.append(record)
            yield photograph, records

    def sheet(self, photographs: Sequence[Photograph], rows: Sequence[Row], path: Path) -> None:
        """Draw the first photographs with the maps of some rows."""
        images, target = self.net.images(photographs), torch.tensor([p.label for p in photographs])
        seeds = [_seed(photograph) for photograph in photographs]
        maps = self.explainers(rows, images, target, seeds)
        columns = {f"{row.method}\n{row.layer}".strip(): maps[row].values for row in rows}
        draw_sheet(columns, images, self.net.normalisation, path)


def _seed(photograph: Photograph) -> int:
    return sum(place * code for place, code in enumerate(photograph.name.encode(), start=1))


def study(
    name: str, args: argparse.Namespace, size: Size, judged_by: Sequence[str], say: Progress
) -> tuple[list[dict[str, Any]], str]:
    """Study one network: its lines of the table, and its part of the report."""
    net, photographs = load(name, args.images, args.labels, args.layers)
    folder = args.out / name
    mixed = in_order(photographs)
    reserved = min(BASELINES, len(mixed) // 3)
    candidates, others = mixed[: len(mixed) - reserved], mixed[len(mixed) - reserved :]
    explainers = Explainers(net.model, net.images(others), size.samples, size.masks)
    auto = explainers.layer_of(Row(OURS, AUTO))
    settings = {"judges": list(judged_by), "layers": list(net.layers), "photographs": len(photographs), AUTO: auto}
    begin(folder, {**asdict(size), **settings}, MAY_GROW)
    right, accuracy = right_ones(net, candidates, size.choose + size.compare, folder / "right.json")
    if len(right) < size.choose + 2:
        raise UnusableInputError(
            f"{name} gets {len(right)} of {len(candidates)} photographs right, and {size.choose} are wanted to choose "
            "layers on and two at least to compare on. Hand over more photographs, lower --choose, or check the order "
            "of the classes."
        )
    first, rest = right[: size.choose], right[size.choose :]
    if len(rest) < size.compare:
        say(f"{name}: {len(rest)} photographs are left to compare on, fewer than --compare {size.compare}")
    journal = Journal(folder / "records.jsonl")
    runner = Study(net, explainers, journal, size, judged_by, say)

    choice = runner.stage("choose", first, rows_to_choose(net, expensive=False))
    if size.expensive:
        some = first[: max(1, size.expensive // len(net.layers))]
        choice = runner.stage("choose", some, rows_to_choose(net, expensive=True))
    best = best_layers(choice)
    rows = rows_to_compare(best, expensive=False)
    records = runner.stage("compare", rest, rows)
    if size.expensive:
        records = runner.stage("compare", rest[: size.expensive], rows_to_compare(best, expensive=True))
    records = records + runner.stage("further", rest[: size.further], rows_further(net, best))
    sheet = folder / "sheet.png"
    if size.sheet and not sheet.is_file():
        runner.sheet(rest[: size.sheet], [row for row in rows if row.layer], sheet)
        say(f"{name}: photographs and maps are on {sheet}")
    lines = summary(name, records, best)
    text = "\n".join(
        [
            f"## {name}\n",
            f"Top-1 accuracy {accuracy:.3f}. Layers chosen on {len(first)} photographs, compared on {len(rest)} others"
            f"; '{AUTO}' is {auto}.\n",
            verdicts(lines),
            tables(lines),
            f"Where layers were chosen, insertion minus deletion:\n\n{choice_table(choice)}",
        ]
    )
    return lines, text


def arguments(argv: Sequence[str] | None) -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", required=True, metavar="NAME", help="of torchvision, timm, or DIR/nets.py")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="class folders, or files (--labels)")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="lines 'file class-index', for files in DIR")
    parser.add_argument("--layers", nargs="+", metavar="LAYER", help="where to explain, instead of three known ones")
    parser.add_argument(
        "--judges", nargs="+", choices=(judges.OURS, judges.QUANTUS, judges.CAPTUM), help="default: all"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/compare_methods"), help="where everything is written")
    parser.add_argument("--quick", action="store_true", help="a miniature that shows that it runs, and nothing else")
    for name, text in COUNTS.items():
        default = getattr(Size(), name)
        parser.add_argument(f"--{name}", type=int, help=f"{text} ({default})" if default is not None else text)
    return parser.parse_args(argv), parser


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Run the study, write tables and sheets, and return the lines of the table."""
    args, parser = arguments(argv)
    two_threads()
    say = Progress()
    given = {name: getattr(args, name) for name in COUNTS}
    size = Size(**{**asdict(QUICK if args.quick else Size()), **{k: v for k, v in given.items() if v is not None}})
    if size.choose < 1 or size.compare < 2:
        parser.error(
            "Expected --choose 1 and --compare 2 at least: layers are chosen on some photographs, compared on others."
        )
    installed = judges.available()
    judged_by = tuple(args.judges or installed)
    absent = [name for name in judged_by if name not in installed]
    if absent:
        parser.error(f"--judges {absent[0]} is not installed: pip install {absent[0]}, or leave it out.")
    if not cams.available():
        say("pytorch-grad-cam is not installed (pip install grad-cam): its methods are left out")
    lines: list[dict[str, Any]] = []
    parts = ["# Methods compared\n", "↑ higher is better, ↓ lower.\n"]
    for name in args.nets:
        try:
            found, text = study(name, args, size, judged_by, say)
        except UnusableInputError as error:
            parser.error(str(error))
        lines += found
        parts.append(text)
        # After each network: the next ones may take hours.
        (args.out / "compare_methods.md").write_text("\n".join(parts), encoding="utf-8")
        write_csv(args.out / "compare_methods.csv", lines)
    say(f"written to {args.out}")
    return lines


if __name__ == "__main__":
    main()
