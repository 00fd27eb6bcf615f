"""What the records of ``compare_methods.py`` say: means, paired differences, tables, and a sheet to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from cams import AUTO, OURS, RANDOM, Row, is_expensive
from scipy.stats import t as students_t
from study import markdown
from torch import Tensor

Record = Mapping[str, Any]
DEFAULT = Row(OURS, AUTO)


def insertion_minus_deletion(record: Record) -> float:
    """Our first judge; NaN where it was not asked."""
    return float(record.get("insertion", float("nan"))) - float(record.get("deletion", float("nan")))


# Title, and how a record gives the number. Higher is better in the first two, lower in the others.
JUDGED: dict[str, tuple[str, Callable[[Record], float]]] = {
    "order": ("insertion minus deletion ↑", insertion_minus_deletion),
    "flipping": ("Quantus flipping ↑", lambda record: float(record.get("flipping", float("nan")))),
    "infidelity": ("infidelity ↓", lambda record: float(record.get("infidelity", float("nan")))),
    "captum": ("captum infidelity ↓", lambda record: float(record.get("captum", float("nan")))),
}


def row_of(record: Record) -> Row:
    """Which method and layer a record is of."""
    return Row(record["method"], record["layer"])


def mean_error(values: Iterable[float]) -> tuple[float, float, int]:
    """Mean, standard error and number of what is a number."""
    kept = torch.tensor([value for value in values if value == value], dtype=torch.float64)
    count = len(kept)
    error = float(kept.std()) / count**0.5 if count > 1 else float("nan")
    return (float(kept.mean()) if count else float("nan")), error, count


def best_layers(records: Iterable[Record]) -> dict[str, str]:
    """The layer at which each method has the highest insertion minus deletion, over the photographs it is chosen on."""
    values: dict[Row, list[float]] = {}
    for record in records:
        values.setdefault(row_of(record), []).append(insertion_minus_deletion(record))
    best: dict[str, tuple[float, str]] = {}
    for row, found in values.items():
        mean = mean_error(found)[0]
        if mean == mean and mean > best.get(row.method, (-float("inf"), ""))[0]:
            best[row.method] = (mean, row.layer)
    return {method: layer for method, (_, layer) in best.items()}


def paired(records: Sequence[Record], first: Row, second: Row, judged: str) -> tuple[float, float, int]:
    """Mean, half of the 95 % confidence interval (Student's t), and number of ``first`` minus ``second``.

    Over the photographs that both have a value for.
    """
    value = JUDGED[judged][1]
    by_row = {row: {r["photograph"]: value(r) for r in records if row_of(r) == row} for row in (first, second)}
    shared = by_row[first].keys() & by_row[second].keys()
    mean, error, count = mean_error(by_row[first][name] - by_row[second][name] for name in sorted(shared))
    return mean, error * float(students_t.ppf(0.975, count - 1)) if count > 1 else float("nan"), count


def pooled_gap(records: Iterable[Record]) -> float:
    """The completeness gap of a row over its photographs; NaN for methods that are not meant to be complete."""
    kept = [(r["missing"], r["difference"]) for r in records if r.get("missing") is not None]
    total = sum(difference for _, difference in kept)
    return sum(missing for missing, _ in kept) / total if total else float("nan")


def summary(net: str, records: Sequence[Record], chosen: Mapping[str, str]) -> list[dict[str, Any]]:
    """One line for each method and layer of one network, as numbers.

    Args:
        net: its name.
        records: of the photographs of the comparison.
        chosen: each method's own best layer.

    """
    by_row: dict[Row, list[Record]] = {}
    for record in records:
        by_row.setdefault(row_of(record), []).append(record)
    lines = []
    for row, found in by_row.items():
        own = chosen.get(row.method) == row.layer
        same = chosen.get(OURS) == row.layer
        why = " and ".join(
            word for word, holds in (("own best", own), ("our layer", same)) if holds and row.method != OURS
        )
        line: dict[str, Any] = {"net": net, "method": row.method, "layer": row.layer, "chosen": why or "-"}
        line["photographs"] = len(found)
        for judged, (_, value) in JUDGED.items():
            line[judged], line[f"{judged}_error"], _ = mean_error(map(value, found))
            lead, half, _ = paired(records, DEFAULT, row, judged) if row != DEFAULT else (float("nan"),) * 3
            line |= {f"{judged}_lead": lead, f"{judged}_low": lead - half, f"{judged}_high": lead + half}
        line["gap"] = pooled_gap(found)
        line["seconds"] = mean_error(float(r["seconds"]) for r in found)[0]
        lines.append(line)
    return lines


def others(lines: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The methods that ours has to beat: those of a few passes, each at its own best layer."""
    return [
        line
        for line in lines
        if line["method"] not in (OURS, RANDOM) and not is_expensive(line["method"]) and "own best" in line["chosen"]
    ]


def verdicts(lines: Sequence[Mapping[str, Any]]) -> str:
    """What came out of one network: ours with default arguments against the best other, by each judge."""
    said = []
    for judged, (title, _) in JUDGED.items():
        known = [line for line in others(lines) if line[judged] == line[judged]]
        if not known:
            continue
        best = (max if title.endswith("↑") else min)(known, key=lambda line: line[judged])
        said.append(
            f"- {title[:-2]}: the best other method is {best['method']} at {best['layer']}; '{AUTO}' minus it is "
            f"{number(best[f'{judged}_lead'])}, 95 % interval {number(best[f'{judged}_low'])} to "
            f"{number(best[f'{judged}_high'])}."
        )
    return "\n".join(said) + "\n"


def number(value: float) -> str:
    """Three digits, or a dash for what is not a number."""
    return f"{value:.3f}" if value == value else "-"


def tables(lines: Sequence[Mapping[str, Any]]) -> str:
    """Values and paired differences of one network, as Markdown."""
    kept = [judged for judged in JUDGED if any(line[judged] == line[judged] for line in lines)]
    about = ("method", "layer", "chosen")

    def spread(line: Mapping[str, Any], judged: str) -> str:
        return f"{number(line[judged])} ± {number(line[f'{judged}_error'])}" if line[judged] == line[judged] else "-"

    def lead(line: Mapping[str, Any], judged: str) -> str:
        low, high = (number(line[f"{judged}_{end}"]) for end in ("low", "high"))
        return (
            f"{number(line[f'{judged}_lead'])} [{low}, {high}]"
            if line[f"{judged}_lead"] == line[f"{judged}_lead"]
            else "-"
        )

    values = markdown(
        [*about, "photographs", *(JUDGED[judged][0] for judged in kept), "gap", "seconds"],
        [
            [
                *(line[key] or "-" for key in about),
                str(line["photographs"]),
                *(spread(line, judged) for judged in kept),
                number(line["gap"]),
                f"{line['seconds']:.2f}",
            ]
            for line in lines
        ],
    )
    leads = markdown(
        [*about, *(JUDGED[judged][0][:-2] for judged in kept)],
        [
            [*(line[key] or "-" for key in about), *(lead(line, judged) for judged in kept)]
            for line in lines
            if (line["method"], line["layer"]) != (DEFAULT.method, DEFAULT.layer)
        ],
    )
    return (
        f"Mean ± standard error.\n\n{values}\n'{AUTO}' minus each, over the same photographs, with the 95 % confidence "
        f"interval.\n\n{leads}"
    )


def choice_table(records: Sequence[Record]) -> str:
    """Insertion minus deletion of each method at each layer, on the photographs that layers are chosen on."""
    layers = list(dict.fromkeys(record["layer"] for record in records))
    methods = list(dict.fromkeys(record["method"] for record in records))

    def cell(method: str, layer: str) -> str:
        found = [insertion_minus_deletion(r) for r in records if row_of(r) == Row(method, layer)]
        mean, error, _ = mean_error(found)
        return f"{number(mean)} ± {number(error)}" if found else "-"

    return markdown(["method", *layers], [[method, *(cell(method, layer) for layer in layers)] for method in methods])


def draw_sheet(columns: Mapping[str, Tensor], images: Tensor, normalisation: Mapping[str, Any], path: Path) -> None:
    """Photographs with the methods' maps side by side, each map by its own maximum.

    Args:
        columns: maps ``(N, h, w)`` by title.
        images: ``(N, 3, H, W)``, model inputs.
        normalisation: what :func:`~egcam_lightning.pictures.pixels.to_display` needs to show their own colours.
        path: of the PNG file.

    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from egcam_lightning.history.records import ProbeImages, Snapshot
    from egcam_lightning.pictures.draw import draw
    from egcam_lightning.pictures.pixels import to_display

    shown, restored = to_display(images, **normalisation)
    count = len(images)
    none, unknown = torch.zeros(count), torch.zeros(count).long()
    probe = ProbeImages(shown, unknown, restored=restored)
    drawn = {
        title: draw(Snapshot(0, 0, "epoch", title, 1, maps, unknown, unknown, *[none] * 4), probe)
        for title, maps in columns.items()
    }
    pictures = {"photograph": next(iter(drawn.values())).pictures, **{k: v.blended for k, v in drawn.items()}}
    figure = Figure(figsize=(1.5 * len(pictures), 1.5 * count + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(count, len(pictures), squeeze=False)
    for column, (title, parts) in enumerate(pictures.items()):
        axes[0][column].set_title(title, fontsize=7)
        for row, picture in enumerate(parts):
            axes[row][column].imshow(picture)
            axes[row][column].set_axis_off()
    figure.savefig(path, dpi=110)
