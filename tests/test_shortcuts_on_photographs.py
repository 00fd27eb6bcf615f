"""The study of planted cues in miniature: it runs, goes on where it was stopped, and takes the data that it names."""

from __future__ import annotations

import csv
import importlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

EXAMPLES = str(Path(__file__).parents[1] / "examples")


@pytest.fixture(scope="module")
def modules() -> Iterator[SimpleNamespace]:
    names = ("shortcuts_on_photographs", "small_photographs", "cues", "photographs")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})


def run(modules, out: Path, *more: str) -> list[dict]:
    threads = torch.get_num_threads()
    try:
        options = ["--quick", "--nets", "resnet20", "--kinds", "tag", "cast", "--shares", "1", "--out", str(out)]
        return modules.shortcuts_on_photographs.main([*options, *more])
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(modules, tmp_path_factory) -> SimpleNamespace:
    out = tmp_path_factory.mktemp("whole")
    return SimpleNamespace(out=out, records=run(modules, out))


def test_it_writes_a_line_for_each_run_and_a_table(whole):
    with (whole.out / "shortcuts_on_photographs.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(r["kind"], r["seed"]) for r in lines] == [("clean", "0"), ("clean", "1"), ("tag", "0"), ("cast", "0")]
    for record in whole.records:
        assert record["passes"] > 0
        assert math.isnan(record["cue_turns"]) == (record["kind"] == "clean")
        assert record["weight"] >= record["of_class"] or math.isnan(record["of_class"])
        assert record["place"] != 1 or record["weight"] == record["of_class"]
    text = (whole.out / "shortcuts_on_photographs.md").read_text()
    assert "| tag, 100% | 1 | " in text
    assert "| spread over the image | 1 |" in text
    assert "Of 2 clean runs" in text


def test_a_stopped_study_goes_on_and_does_nothing_twice(modules, whole, monkeypatch):
    path = whole.out / "resnet20" / "records.jsonl"
    text = path.read_text()
    path.write_text(text[:-40])  # within the last line
    ran, work = [], modules.shortcuts_on_photographs.Study.run

    def watched(self, plan, folder):
        ran.append(plan.kind)
        return work(self, plan, folder)

    monkeypatch.setattr(modules.shortcuts_on_photographs.Study, "run", watched)
    run(modules, whole.out)
    assert ran == ["cast"]
    before, after = ([json.loads(line) for line in each.splitlines()] for each in (text, path.read_text()))
    for one, other in zip(before, after, strict=True):
        # A network that goes on from a file is the same to the bit, and so is what is said of it.
        assert {**one, "seconds": 0} == pytest.approx({**other, "seconds": 0}, nan_ok=True)


@pytest.mark.parametrize(
    "options", [(), ("--data", "nowhere"), ("--quick", "--shares", "0"), ("--quick", "--nets", "x")]
)
def test_what_it_cannot_use_is_refused_with_what_to_write(modules, tmp_path, capsys, options):
    with pytest.raises(SystemExit):
        modules.shortcuts_on_photographs.main([*options, "--out", str(tmp_path)])
    said = capsys.readouterr().err
    assert any(words in said for words in ("Expected --data", "Write --data", "Expected --shares", "as --nets"))


@pytest.mark.parametrize("kind", ["tag", "places", "crop", "frame", "cast", "watermark"])
def test_a_cue_is_the_same_in_every_image_and_the_rest_is_left(modules, kind):
    images = torch.randint(0, 256, (6, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    cue = modules.cues.Cue(kind, images, seed=1)
    marked = cue.put(images, seed=2)
    assert torch.equal(marked, cue.put(images, seed=2))
    assert marked.dtype == torch.uint8
    changed = (marked != images).any(1)
    if kind in ("tag", "crop"):
        assert changed.any(0).sum() <= 64
        where = changed.any(0)
        assert torch.equal(marked[:, :, where], marked[:1, :, where].expand(6, -1, -1))
    elif kind == "places":
        assert (changed.flatten(1).sum(1) <= 60).all()
        assert len({tuple(c.nonzero()[0].tolist()) for c in changed}) > 1
    elif kind == "frame":
        assert not changed[:, 2:-2, 2:-2].any()
    else:
        share = modules.cues.CAST if kind == "cast" else modules.cues.WATERMARK
        assert (marked.float() - images.float()).abs().max() <= share * 255 + 0.5


def test_a_cue_is_on_a_share_of_one_class_alone(modules):
    images = torch.full((40, 3, 32, 32), 128, dtype=torch.uint8)
    labels = torch.arange(40) % 4
    cue = modules.cues.Cue("frame", images, seed=0)
    marked = modules.shortcuts_on_photographs.planted(images, labels, 2, cue, 0.5, seed=3)
    changed = (marked != images).flatten(1).any(1)
    assert changed.sum() == 5
    assert set(labels[changed].tolist()) == {2}


def test_photographs_come_from_class_folders_and_from_an_archive(modules, tmp_path):
    generator = torch.Generator().manual_seed(1)
    for name in ("cat", "dog"):
        (tmp_path / "folders" / name).mkdir(parents=True)
        for index in range(5):
            pixels = torch.randint(0, 256, (40, 48, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(tmp_path / "folders" / name / f"{index}.png")
    found = modules.small_photographs.load(str(tmp_path / "folders"), 24)
    assert tuple(found.train_images.shape) == (8, 3, 24, 24)
    assert tuple(found.test_images.shape) == (2, 3, 24, 24)
    assert found.class_names == ["cat", "dog"]
    stored = {"train_images": np.zeros((3, 8, 8, 3), np.uint8), "test_images": np.ones((2, 8, 8, 3), np.uint8)}
    labels = {"train_labels": np.array([0, 1, 1]), "test_labels": np.array([1, 0]), "class_names": np.array(["a", "b"])}
    np.savez(tmp_path / "cifar10.npz", **stored, **labels)
    found = modules.small_photographs.load(str(tmp_path), 32)
    assert found.test_images.shape == (2, 3, 8, 8)
    assert found.train_labels.tolist() == [0, 1, 1]
    np.savez(tmp_path / "cifar10.npz", **stored)
    with pytest.raises(modules.photographs.UnusableInputError, match="train_labels"):
        modules.small_photographs.load(str(tmp_path), 32)


def test_the_small_vit_takes_the_photographs_and_is_explained(modules):
    model, _, trained = modules.small_photographs.network("vit", 4, 32, Path("nowhere"))
    assert not trained
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 4)
    assert model.encoder.pos_embedding.shape[1] == 65  # 8x8 patches, and the class token
