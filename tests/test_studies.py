"""The two studies in miniature: they run from their command lines, write what they promise, and measure sensibly."""

from __future__ import annotations

import csv
import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from PIL import Image

EXAMPLES = str(Path(__file__).parents[1] / "examples")


def example(name: str) -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield importlib.import_module(name)


@pytest.fixture(scope="module")
def compare() -> Iterator[ModuleType]:
    yield from example("compare_on_digits")


@pytest.fixture(scope="module")
def hans() -> Iterator[ModuleType]:
    yield from example("clever_hans")


@pytest.fixture(scope="module")
def shortcuts() -> Iterator[ModuleType]:
    yield from example("shortcuts")


def ran(module: ModuleType, out: Path) -> SimpleNamespace:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    records = module.main(["--quick", "--out", str(out)])
    torch.set_num_threads(threads)
    with (out / f"{module.__name__}.csv").open() as file:
        table = list(csv.DictReader(file))
    text = (out / f"{module.__name__}.md").read_text()
    return SimpleNamespace(records=records, table=table, text=text, out=out, state=state)


@pytest.fixture(scope="module")
def compared(compare, tmp_path_factory):
    return ran(compare, tmp_path_factory.mktemp("compared"))


@pytest.fixture(scope="module")
def told_apart(hans, tmp_path_factory):
    return ran(hans, tmp_path_factory.mktemp("hans"))


@pytest.mark.parametrize("study", ["compared", "told_apart"])
def test_a_study_writes_its_tables_and_a_figure_with_something_on_it(study, request):
    result = request.getfixturevalue(study)
    assert len(result.table) == len(result.records)
    tables = [block for block in result.text.split("\n\n") if block.startswith("|")]
    assert len(tables) >= 2
    for table in tables:
        widths = {line.count("|") for line in table.strip().splitlines()}
        assert len(widths) == 1  # every line has every column
    assert "nan" not in result.text
    [figure] = result.out.glob("*.png")
    with Image.open(figure) as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 50
    assert figure.stat().st_size < 150_000


def test_every_method_is_measured_at_both_layers_of_both_architectures(compare, compared):
    seen = {(r["architecture"], r["layer"], r["method"]) for r in compared.records}
    assert seen == {(a, d, m) for a in compare.ARCHITECTURES for d in ("last", "earlier") for m in compare.METHODS}


def test_numbers_of_methods_are_within_their_ranges(compared):
    for record in compared.records:
        assert all(0 <= record[key] <= 1 for key in ("insertion", "deletion", "infidelity", "complexity", "mass"))
        assert all(0 <= record[key] < math.inf for key in ("yeh", "gap", "sensitivity", "quantus", "captum"))


def test_at_global_pooling_and_a_linear_head_the_weightings_agree_and_are_complete(compared):
    cell = {r["method"]: r for r in compared.records if (r["architecture"], r["layer"]) == ("ResNet", "last")}
    one, other = cell["Expected, channel, activation"], cell["Expected, elementwise, activation"]
    assert one["gap"] < 1e-3
    for key in ("insertion", "infidelity", "yeh", "mass", "captum", "quantus"):
        assert one[key] == pytest.approx(other[key], rel=1e-3, abs=1e-5)


def test_captum_and_quantus_are_left_out_where_they_are_not_installed(compare, compared, monkeypatch):
    monkeypatch.setattr(compare, "find_spec", lambda name: None)
    values = compare.judges(None, SimpleNamespace(images=torch.zeros(2, 3, 8, 8)), torch.zeros(2, 4, 4), compare.QUICK)
    assert all(math.isnan(value) for value in values.values())
    lacking = [{**record, **values} for record in compared.records]
    assert "captum" not in compare.claims(lacking)
    assert "Quantus" not in compare.ranks_table(lacking)


@pytest.mark.parametrize(("ours", "words"), [(0.5, "in 4 of 4"), (1.0, "in 0 of 4"), (2.0, "in 0 of 4")])
def test_a_lowest_value_that_is_shared_is_not_counted_as_ones_own(compare, compared, ours, words):
    records = [{**r, "yeh": ours if r["method"] == compare.OURS else 1.0 + r["gap"] % 1e-9} for r in compared.records]
    shared = 4 if ours == 1.0 else 0
    assert f"lowest infidelity (ours) {words} cells, and shares it within 0.1 % in {shared} more." in (
        compare.claims(records)
    )


def test_ranks_say_who_loses(compare, compared):
    records = [{**r, "infidelity": 0.9 if r["method"] == compare.OURS else 0.1} for r in compared.records]
    line = next(row for row in compare.ranks_table(records).splitlines() if compare.OURS in row)
    header = compare.ranks_table(records).splitlines()[0]
    column = [name.strip() for name in header.split("|")].index("infidelity")
    assert line.split("|")[column].strip() == f"{len(compare.METHODS)}.0"


def test_a_fixed_tag_shows_in_consensus_and_a_moving_one_in_recurrence(told_apart):
    last = [r for r in told_apart.records if r["epoch"] == 2]
    clean = [r for r in last if r["kind"] == "clean"]
    tag, places = (next(r for r in last if r["kind"] == kind) for kind in ("tag", "places"))
    assert tag["consensus"] > max(r["consensus"] for r in clean)
    assert places["recurrence"] > max(r["recurrence"] for r in clean)
    assert tag["on_shortcut"] > 3 * tag["shortcut_share"]


def test_the_area_is_the_share_of_pairs_in_the_suspected_order(hans):
    def runs(key: str, clean: list[float], tag: list[float]) -> list[dict]:
        return [{"epoch": 1, "kind": kind, key: v} for kind, part in (("clean", clean), ("tag", tag)) for v in part]

    assert hans.area(runs("consensus", [0.1, 0.5], [0.3, 0.9]), "tag", 1, "consensus") == pytest.approx(0.75)
    assert hans.area(runs("relevance_mass", [0.1, 0.5], [0.0, 0.2]), "tag", 1, "relevance_mass") == pytest.approx(0.75)
    assert math.isnan(hans.area(runs("consensus", [math.nan], [1.0]), "tag", 1, "consensus"))


def test_a_planted_shortcut_changes_what_it_says_and_nothing_else(shortcuts):
    bare = shortcuts.PlantedDigits("val", seed=3)
    assert bare.planted is None
    for kind in shortcuts.SHORTCUTS:
        data = shortcuts.PlantedDigits("val", kind=kind, seed=3)
        assert torch.equal(data.bare, bare.images)
        outside = ~data.planted[:, None].expand_as(data.images)
        assert torch.equal(data.images[outside], bare.images[outside])
        if kind != "cast":
            assert not (data.masks & data.planted).any()
            colours = [data.images[:, channel][data.planted].view(len(data), -1) for channel in range(3)]
            assert all((colour == colour[:, :1]).all() for colour in colours)
    corners = shortcuts.PlantedDigits("val", kind="places", seed=3).planted.flatten(1).float().argmax(1).unique()
    assert len(corners) == 4
    with pytest.raises(ValueError, match="expected one of"):
        shortcuts.shortcut_masks("smell", 1, torch.Generator())
