"""The study on photographs in miniature: it runs, goes on where it was stopped, and says what it cannot use."""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import Compose, Normalize, ToTensor

EXAMPLES = str(Path(__file__).parents[1] / "examples")
NETS = """
import json
from pathlib import Path

import torch
from torch import nn
from torchvision.transforms import Compose, Normalize, ToTensor

HERE = Path(__file__).parent


def load(name):
    if name != "tiny":
        raise KeyError(f"no network {name!r}; there are tiny")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()]
        layers += [nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
        model = nn.Sequential(*layers)
    return model.eval(), Compose([ToTensor(), Normalize([0.5] * 3, [0.25] * 3)])


def imagenet(limit=None):
    return [(HERE / name, label) for name, label in json.loads((HERE / "labels.json").read_text())]
"""


@pytest.fixture(scope="module")
def modules() -> Iterator[SimpleNamespace]:
    names = ("compare_methods", "comparison", "photographs", "cams", "judges", "explain_photographs")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})


def pictures(folder: Path, count: int) -> list[str]:
    generator = torch.Generator().manual_seed(1)
    names = [f"{index:02d}.png" for index in range(count)]
    for name in names:
        coarse = torch.randint(0, 256, (4, 4, 3), generator=generator, dtype=torch.uint8)
        pixels = coarse.repeat_interleave(8, 0).repeat_interleave(8, 1)
        Image.fromarray(pixels.numpy()).save(folder / name)
    return names


@pytest.fixture(scope="module")
def folder(modules, tmp_path_factory) -> Path:
    """Twelve photographs that a tiny network gets right, and the network."""
    root = tmp_path_factory.mktemp("real")
    (root / "nets.py").write_text(NETS)
    names = pictures(root, 12)
    (root / "labels.json").write_text(json.dumps([[name, 0] for name in names]))
    net, photographs = modules.photographs.load("tiny", root, None, None)
    with torch.no_grad():
        labels = net.model(net.images(photographs)).argmax(1).tolist()
    (root / "labels.json").write_text(json.dumps(list(zip(names, labels, strict=True))))
    return root


def run(modules, folder: Path, out: Path, *more: str) -> list[dict]:
    threads = torch.get_num_threads()
    try:
        options = ["--nets", "tiny", "--images", str(folder), "--quick", "--out", str(out)]
        return modules.compare_methods.main([*options, *more])
    finally:
        torch.set_num_threads(threads)


def records(out: Path) -> dict[tuple, dict]:
    lines = (out / "tiny" / "records.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    keyed = {(r["stage"], r["photograph"], r["method"], r["layer"]): r for r in found}
    assert len(keyed) == len(found)  # nothing twice
    return {key: {name: value for name, value in r.items() if name != "seconds"} for key, r in keyed.items()}


@pytest.fixture(scope="module")
def whole(modules, folder, tmp_path_factory) -> SimpleNamespace:
    out = tmp_path_factory.mktemp("whole")
    return SimpleNamespace(out=out, lines=run(modules, folder, out), records=records(out))


def test_it_writes_tables_and_a_sheet(modules, whole):
    with (whole.out / "compare_methods.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(whole.lines)
    text = (whole.out / "compare_methods.md").read_text()
    assert "nan" not in text
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 3
    assert all(len({line.count("|") for line in table.strip().splitlines()}) == 1 for table in tables)
    with Image.open(whole.out / "tiny" / "sheet.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 50


def test_every_method_is_compared_at_its_own_best_layer_on_photographs_that_did_not_choose_it(modules, whole):
    stages = {stage: {p for s, p, *_ in whole.records if s == stage} for stage in ("choose", "compare", "further")}
    assert (len(stages["choose"]), len(stages["compare"]), len(stages["further"])) == (2, 3, 2)
    assert not stages["choose"] & stages["compare"]
    assert stages["further"] < stages["compare"]
    best = modules.comparison.best_layers([r for key, r in whole.records.items() if key[0] == "choose"])
    compared = {(method, layer) for stage, _, method, layer in whole.records if stage == "compare"}
    ours = modules.cams.OURS
    others = {(method, layer) for method, layer in best.items() if method != ours}
    assert set(best) == {*modules.cams.FAMILY, *modules.cams.LIBRARY}
    assert compared == {(ours, "auto"), *others, (modules.cams.RANDOM, "")}
    further = {(method, layer) for stage, _, method, layer in whole.records if stage == "further"}
    assert {(method, best[ours]) for method in best} <= compared | further


@pytest.mark.parametrize("share", [0.3, 0.97])
def test_a_stopped_study_goes_on_and_does_nothing_twice(modules, folder, whole, tmp_path, monkeypatch, share):
    (tmp_path / "tiny").mkdir()
    for name in ("settings.json", "right.json"):
        (tmp_path / "tiny" / name).write_text((whole.out / "tiny" / name).read_text())
    text = (whole.out / "tiny" / "records.jsonl").read_text()
    kept = text[: int(share * len(text))]  # within a line
    (tmp_path / "tiny" / "records.jsonl").write_text(kept)
    judged, judge = [], modules.judges.judge
    monkeypatch.setattr(modules.judges, "judge", lambda *args: judged.append(len(args[3])) or judge(*args))
    run(modules, folder, tmp_path)
    assert sum(judged) == len(text.splitlines()) - kept.count("\n")
    again = records(tmp_path)
    assert again.keys() == whole.records.keys()
    for key, record in whole.records.items():
        assert again[key] == pytest.approx(record, abs=2e-4), key


def test_a_study_that_goes_on_may_have_more_photographs_but_not_other_settings(modules, folder, whole, capsys):
    before = len(whole.records)
    run(modules, folder, whole.out)
    assert len(records(whole.out)) == before
    with pytest.raises(SystemExit):
        run(modules, folder, whole.out, "--samples", "8")
    assert "begun with samples = 4, and now it is 8" in capsys.readouterr().err


def refused(modules, capsys, *options: str) -> str:
    with pytest.raises(SystemExit):
        modules.compare_methods.main(list(options))
    return " ".join(capsys.readouterr().err.split())


@pytest.fixture
def pretrained(modules, folder, monkeypatch) -> None:
    """A network of four classes under the name of one of torchvision's."""
    net, _ = modules.photographs.load("tiny", folder, None, None)
    monkeypatch.setattr(modules.photographs, "_pretrained", lambda name: (net.model, net.transform))


def test_photographs_without_labels_are_refused_with_what_to_write(modules, tmp_path, capsys):
    pictures(tmp_path, 3)
    said = refused(modules, capsys, "--nets", "resnet50", "--images", str(tmp_path), "--out", str(tmp_path / "out"))
    assert "holds 3 photographs without labels" in said
    assert "pass --labels FILE with a line 'file class-index'" in said
    said = refused(modules, capsys, "--nets", "resnet50", "--images", str(tmp_path / "no"))
    assert "is no folder" in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("00.png", "line 1: expected 'file class-index'"),
        ("00.png 0\nother.png 1\n", "line 2: there is no file"),
        ("", "is empty"),
        ("00.png 0\n01.png 7\n02.png 1\n", "tiny4 has 4 classes, but"),
    ],
)
def test_label_lists_that_do_not_fit_are_refused(modules, tmp_path, capsys, pretrained, text, words):
    pictures(tmp_path, 3)
    (tmp_path / "labels.txt").write_text(text)
    options = ("--nets", "tiny4", "--images", str(tmp_path), "--labels", str(tmp_path / "labels.txt"))
    assert words in refused(modules, capsys, *options, "--out", str(tmp_path / "out"))


def test_folders_that_are_not_the_networks_classes_are_refused(modules, tmp_path, capsys, pretrained):
    for name in ("cat", "dog", "eel"):
        (tmp_path / name).mkdir()
        pictures(tmp_path / name, 1)
    said = refused(modules, capsys, "--nets", "tiny4", "--images", str(tmp_path), "--out", str(tmp_path / "out"))
    assert "tiny4 has 4 classes, but" in said
    assert "has 3 class folders" in said
    (tmp_path / "fox").mkdir()
    pictures(tmp_path / "fox", 1)
    _, photographs = modules.photographs.load("tiny4", tmp_path, None, None)
    assert [(p.name, p.label) for p in photographs] == [
        ("cat/00.png", 0), ("dog/00.png", 1), ("eel/00.png", 2), ("fox/00.png", 3)
    ]  # fmt: skip


def test_unknown_networks_and_layers_are_refused(modules, folder, tmp_path, capsys):
    options = ("--images", str(folder), "--out", str(tmp_path / "out"), "--quick")
    assert "no network 'large'; there are tiny." in refused(modules, capsys, "--nets", "large", *options)
    said = refused(modules, capsys, "--nets", "tiny", *options, "--layers", "layer3")
    assert "tiny has no layer 'layer3'" in said
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        pictures(tmp_path / name, 2)
    said = refused(modules, capsys, "--nets", "no_such_net", "--images", str(tmp_path))
    assert "There is no network 'no_such_net' in torchvision or timm." in said


def test_too_few_photographs_are_refused(modules, folder, tmp_path, capsys):
    options = ("--nets", "tiny", "--images", str(folder), "--out", str(tmp_path), "--choose", "40")
    assert "photographs right, and 40 are wanted" in refused(modules, capsys, *options)


@pytest.fixture(scope="module")
def scene(modules, folder) -> SimpleNamespace:
    net, photographs = modules.photographs.load("tiny", folder, None, None)
    images, target = net.images(photographs), torch.tensor([p.label for p in photographs])
    return SimpleNamespace(net=net, images=images[:3], target=target[:3], baselines=images[3:])


def test_layers_of_an_unknown_network_are_cuts_over_its_depth(scene):
    assert scene.net.layers[-1] == "6"  # not the pooling behind it
    assert len(scene.net.layers) == 3
    assert scene.net.pairs == tuple((a, b) for i, a in enumerate(scene.net.layers) for b in scene.net.layers[i + 1 :])


def test_judging_together_gives_what_judging_alone_does(modules, scene):
    from egcam_lightning.metrics.functional import class_scores, deletion_auc, infidelity, insertion_auc

    model, image, target = scene.net.model, scene.images[:1], scene.target[:1]
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(4, 4, generator=generator), torch.randn(8, 8, generator=generator)
    maps = [one, other, 2 * one + 3, -one]
    names = modules.judges.available()
    together = modules.judges.judge(modules.judges.sooner(model, scene.images), image, target, maps, names, 6, 8)
    probability = class_scores(model, softmax=True)
    for item, values in zip(maps, together, strict=True):
        [alone] = modules.judges.judge(model, image, target, [item], names, 6, 8)
        assert values == pytest.approx(alone, abs=1e-4)
        attribution = item[None]
        for name, function in (("insertion", insertion_auc), ("deletion", deletion_auc)):
            expected = function(probability, image, attribution, target, num_steps=6)
            assert values[name] == pytest.approx(float(expected), abs=1e-4)
        expected = infidelity(class_scores(model), image, attribution, target, num_perturbations=8)
        assert values["infidelity"] == pytest.approx(float(expected), abs=1e-4)
    assert together[0]["flipping"] == together[2]["flipping"]
    assert together[0]["flipping"] == pytest.approx(-together[3]["flipping"], abs=0.02)
    assert together[0]["captum"] == pytest.approx(together[3]["captum"], abs=1e-4)


def test_a_network_that_is_no_graph_or_would_change_is_judged_as_it_is(modules):
    class Winding(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 2, 1)

        def forward(self, images):
            sign = 1 if images.mean() > 0 else -1
            return sign * self.layer(images).mean((2, 3))

    model, images = Winding().eval(), torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.8
    fast = modules.judges.sooner(model, images)
    assert fast is not model
    for shown in (images, -images):
        torch.testing.assert_close(fast(shown), model(shown))


def test_a_map_is_the_same_but_for_scale_and_constant_or_it_is_another(modules):
    one = torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
    maps = torch.stack([one, one.flip(0), 5 * one - 2, -one, torch.zeros(3, 3), torch.ones(3, 3)])
    assert modules.judges.same_order(maps) == [0, 1, 0, 3, 4, 4]


def test_a_mean_over_layers_is_the_explainers_own(modules, scene):
    cams = modules.cams
    explain = cams.Explainers(scene.net.model, scene.baselines, 4, 8)
    layers = scene.net.layers
    rows = [cams.Row(cams.OURS, f"{layers[0]}+{layers[2]}"), *(cams.Row(cams.OURS, layer) for layer in layers)]
    seeds = range(3)
    together, alone = (
        explain(rows, scene.images, scene.target, seeds),
        explain(rows[:1], scene.images, scene.target, seeds),
    )
    torch.testing.assert_close(together[rows[0]].values, alone[rows[0]].values)
    assert together[rows[0]].seconds > 0


def test_the_librarys_maps_lie_on_the_layers_grid_and_its_grad_cam_is_the_familys_rectified(modules, scene):
    cams = modules.cams
    explain = cams.Explainers(scene.net.model, scene.baselines, 4, 8)
    layer = scene.net.layers[1]
    rows = [cams.Row(method, layer) for method in ("Grad-CAM", *cams.available())]
    maps = {row.method: found.values for row, found in explain(rows, scene.images, scene.target, range(3)).items()}
    grid = maps["Grad-CAM"].shape
    ours = nn.functional.interpolate(maps["Grad-CAM"].clamp(min=0)[:, None], size=(32, 32), mode="bilinear")[:, 0]
    for mine, theirs in zip(ours, maps.pop("Grad-CAM, rectified"), strict=True):
        if mine.any():
            assert float(torch.corrcoef(torch.stack([mine.flatten(), theirs.flatten()]))[0, 1]) > 0.99
    assert all(found.shape == grid and found.isfinite().all() for found in maps.values())
    assert all(parameter.grad is None for parameter in scene.net.model.parameters())


def test_rise_finds_what_the_network_looks_at(modules):
    class Corner(nn.Module):
        def forward(self, images):
            seen = images[:, :, :16, :16].mean((1, 2, 3))
            return torch.stack([8 * seen - 4, torch.zeros_like(seen)], 1)

    found = modules.cams.rise(Corner(), torch.ones(3, 32, 32), torch.tensor(0), masks=400)
    assert found[:16, :16].mean() > found[16:, 16:].mean() + 0.02


def test_leads_are_paired_over_shared_photographs(modules):
    from scipy.stats import ttest_rel

    ours, other = modules.comparison.DEFAULT, modules.cams.Row("LayerCAM", "layer3")
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(2, 20, generator=generator).tolist()
    made = [
        {"photograph": str(index), "method": row.method, "layer": row.layer, "insertion": value, "deletion": 0.0}
        for row, part in zip((ours, other), values, strict=True)
        for index, value in enumerate(part)
    ]
    mean, half, count = modules.comparison.paired(made[:-5], ours, other, "order")
    expected = ttest_rel(values[0][:15], values[1][:15]).confidence_interval()
    assert count == 15
    assert (mean - half, mean + half) == pytest.approx((expected.low, expected.high))


def test_the_colours_of_photographs_are_restored_from_the_transform(modules, scene):
    assert scene.net.normalisation == {"mean": pytest.approx([0.5] * 3), "std": pytest.approx([0.25] * 3)}
    bare = modules.photographs.Net("bare", scene.net.model, Compose([ToTensor()]), (), ())
    assert bare.normalisation == {}
    alone = modules.photographs.Net("alone", scene.net.model, Normalize([0.1], [0.2]), (), ())
    assert alone.normalisation == {"mean": pytest.approx([0.1]), "std": pytest.approx([0.2])}


def test_photographs_of_ones_own_are_explained_side_by_side(modules, folder, tmp_path, capsys):
    files = [str(folder / name) for name in ("03.png", "07.png")]
    arguments = ["--net", "tiny", "--images", str(folder), "-o", str(tmp_path / "sheet.png")]
    sheet = modules.explain_photographs.main([*files, *arguments])
    said = capsys.readouterr().out
    assert "03.png: class" in said
    assert "completeness gap" in said
    pixels = np.asarray(Image.open(sheet).convert("RGB")).astype(int)
    assert (pixels.max(2) - pixels.min(2) > 60).mean() > 0.2  # in colour, most of it


def test_a_photograph_that_is_not_there_is_named(modules, folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        modules.explain_photographs.main([str(tmp_path / "no.png"), "--net", "tiny", "--images", str(folder)])
    assert "there is no file" in capsys.readouterr().err
