"""``egcam audit``: one model by one command, of Lightning or as weights alone with a folder of photographs."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from egcam_lightning import History
from egcam_lightning.commands.main import build_parser, main
from egcam_lightning.replaying.networks import named_network
from tests.commands.photographs import NAMES, weights, write_photographs
from tests.commands.test_replay_command import SMALL, SOURCE, checkpoints  # noqa: F401

TINY = ["--model", "tests.commands.photographs:Tiny", "--size", "64", "--set", "num_images=4", "--set", "num_samples=4"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_photographs(tmp_path_factory.mktemp("photographs"))


@pytest.mark.parametrize("kind", ["weights.safetensors", "weights.pt"])
def test_weights_and_a_folder_of_photographs_give_an_audit(images, tmp_path, capsys, kind):
    path = tmp_path / kind
    save_file(weights(), path) if path.suffix == ".safetensors" else torch.save({"state_dict": weights()}, path)
    assert main(["audit", str(path), *TINY, "--images", str(images), "--fail-if", "findings>0"]) == 1
    said = capsys.readouterr()
    assert "findings is " in said.err
    page = Path(said.out.strip().splitlines()[-1])
    assert page == tmp_path / "audit" / "weights" / "egcam" / "report.html"
    assert "patch of tagged" in page.read_text(encoding="utf-8")
    found = json.loads((page.parent / "findings.json").read_text())
    # Whatever else there is, is of a network that calls an image by its colour.
    assert {f["class"] for f in found["findings"] if f["kind"] != "colour"} == {"tagged"}
    assert (found["findings"][0]["class"], found["findings"][0]["kind"]) == ("tagged", "capture")
    assert found["classes"][0]["class_name"] == "tagged"
    low, high = found["findings"][0]["interval"]
    assert 0.5 < low <= found["values"]["capture/excess"] <= high
    faithful = {one["key"]: one for one in found["faithfulness"]}
    assert list(faithful) == ["completeness_gap", "infidelity", "insertion_auc", "deletion_auc"]
    assert {key: found["values"][key] for key in faithful} == {key: one["mean"] for key, one in faithful.items()}
    assert all(one["low"] <= one["mean"] <= one["high"] and one["num_images"] == 31 for one in faithful.values())
    assert "Faithfulness of the maps of 31 images, with 95 % intervals: completeness gap " in said.out
    shown = re.search(
        r"Infidelity ↓</th><td>([\d.]+)</td><td>([\d.]+) to ([\d.]+)</td>", page.read_text(encoding="utf-8")
    )
    assert shown is not None
    assert [float(one) for one in shown.groups()] == pytest.approx(
        [faithful["infidelity"][part] for part in ("mean", "low", "high")], abs=6e-4
    )
    history = History.load(page.parent)
    assert [asdict(one) for one in history.audit.faithfulness] == found["faithfulness"]
    assert history.probe.class_names == NAMES
    assert history.probe.restored  # the colours of the photographs


def test_baselines_are_photographs_that_are_not_explained(images):
    from egcam_lightning.replaying.networks import usual_transform
    from egcam_lightning.replaying.photographs import PhotographData, read_photographs

    data = PhotographData(read_photographs(images, None, usual_transform(32)))
    held, shown = (loader.dataset.indices for loader in (data.train_dataloader(), data.val_dataloader()))
    assert not set(held) & set(shown)
    assert len(held) + len(shown) == 36


def test_files_and_a_list_of_labels_will_do(images, tmp_path):
    save_file(weights(), tmp_path / "weights.safetensors")
    lines = [f"{name}/{i:02d}.png {label}" for label, name in enumerate(NAMES) for i in range(12)]
    (tmp_path / "labels.txt").write_text("\n".join(lines))
    options = ["--images", str(images), "--labels", str(tmp_path / "labels.txt"), "-o", str(tmp_path / "out")]
    assert main(["audit", str(tmp_path / "weights.safetensors"), *TINY, *options]) == 0
    found = json.loads((tmp_path / "out" / "egcam" / "findings.json").read_text())
    assert {f["class"] for f in found["findings"] if f["kind"] != "colour"} == {"2"}


def test_a_checkpoint_is_audited_with_its_module_and_data(checkpoints, tmp_path):  # noqa: F811
    last = max(checkpoints.glob("*.ckpt"), key=lambda path: int(re.search(r"step=(\d+)", path.name)[1]))
    assert main(["audit", str(last), *SOURCE, *SMALL, "-o", str(tmp_path)]) == 0
    history = History.load(tmp_path / "egcam")
    assert [snapshot.epoch for snapshot in history.snapshots] == [2]
    assert history.audit is not None


def test_a_network_of_a_library_has_as_many_classes_as_its_weights():
    state = models.get_model("squeezenet1_1", num_classes=7).state_dict()
    network, _ = named_network("torchvision:squeezenet1_1", state)
    network.load_state_dict(state)
    assert not network.training


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["timm:resnet18"], "timm:resnet18 looks at photographs: pass --images DIR"),
        (["timm:resnet1", "--images", "{images}"], "timm has no network 'resnet1'"),
        (["torchvision:resnet1", "--images", "{images}"], "torchvision has no network 'resnet1'"),
        (["/nowhere.pt", "--images", "{images}"], "There is no checkpoint /nowhere.pt."),
        (["{weights}", "--images", "{images}"], "holds weights alone: pass their network as --model"),
        (["{weights}", *TINY, "--images", "{images}/blue"], "blue holds 12 photographs without labels."),
        (["{weights}", *TINY, "--images", "/nowhere"], "--images /nowhere is no folder."),
        (["{weights}", *TINY, "--images", "{images}", "--labels", "{weights}.txt"], "is no file."),
        (
            ["{weights}", "--model", "torchvision:resnet18", "--images", "{images}"],
            "another model than ResNet: missing",
        ),
        (["{weights}", *SOURCE], "is no checkpoint of Lightning"),
    ],
)
def test_bad_input_is_told_of_in_a_sentence(images, tmp_path, capsys, options, said):
    torch.save(weights(), tmp_path / "weights.pt")
    known = {"{images}": str(images), "{weights}": str(tmp_path / "weights.pt")}
    given = [re.sub(r"\{\w+\}", lambda match: known[match[0]], one) for one in options]
    assert main(["audit", *given]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("egcam audit: ")
    assert said in last


def test_help_fits_a_screen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        build_parser().parse_args(["audit", "--help"])
    assert len(capsys.readouterr().out.splitlines()) <= 50
