"""``egcam compare``: two models beside each other, told apart by more than noise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from egcam_lightning import compare
from egcam_lightning.commands.main import build_parser, main
from tests.commands.photographs import weights, write_photographs
from tests.commands.test_replay_command import SOURCE, checkpoints  # noqa: F401
from tests.replaying.conftest import SETTINGS, Data, Net

TINY = [
    "--model",
    "tests.commands.photographs:Tiny",
    "--size",
    "64",
    "--set",
    "num_images=6",
    "--set",
    "num_samples=16",
]


def without_the_tag():
    state = weights()
    state["head.weight"].view(3, 3, 8, 8)[2, 2, 7, 7] = 0
    state["head.weight"].view(3, 3, 8, 8)[2, 2] = 30 / 64
    state["head.bias"][2] = -3
    return state


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A model that looks at the tag, and one that does not, compared by one command."""
    folder = tmp_path_factory.mktemp("compared")
    write_photographs(folder / "images")
    save_file(without_the_tag(), folder / "honest.safetensors")
    save_file(weights(), folder / "tagged.safetensors")
    command = ["compare", str(folder / "honest.safetensors"), str(folder / "tagged.safetensors"), *TINY]
    command += ["--images", str(folder / "images"), "-o", str(folder / "out")]
    return folder, command, main(command)


def test_two_files_of_weights_are_compared_by_one_command(compared):
    folder, _, code = compared
    assert code == 0
    found = json.loads((folder / "out" / "compare.json").read_text())
    assert found["names"] == ["honest", "tagged"]
    assert found["values"]["findings/new"] >= 1
    assert any(sentence.startswith("New in tagged: ") for sentence in found["sentences"])
    changed = [row for row in found["images"] if row["prediction_a"] != row["prediction_b"]]
    assert len(changed) / len(found["images"]) == pytest.approx(found["values"]["prediction_changed"])
    page = (folder / "out" / "compare.html").read_text(encoding="utf-8")
    assert "honest" in page
    assert "tagged" in page


def test_a_limit_may_ask_for_what_is_new(compared, capsys):
    _, command, _ = compared
    assert main([*command, "--fail-if", "findings/new>0"]) == 1
    assert "findings/new is " in capsys.readouterr().err
    assert main([*command, "--fail-if", "findings/new>9"]) == 0


def test_a_model_beside_itself_has_not_moved(checkpoints, tmp_path):  # noqa: F811
    one = min(checkpoints.glob("*.ckpt"))
    found = compare(one, one, Net(), Data(), save_dir=tmp_path, **SETTINGS)
    assert found.values["drift"] == found.values["drift/significant"] == found.values["prediction_changed"] == 0
    assert not found.new_findings
    assert not found.gone_findings


def test_other_weights_look_elsewhere_by_more_than_noise(tmp_path):
    torch.manual_seed(0)
    a, b = Net(), Net()
    found = compare(a, b, datamodule=Data(), save_dir=tmp_path, target="predicted", **SETTINGS)
    assert torch.equal(found.a[0].target, found.b[0].target)
    assert torch.equal(found.a[0].target, found.a[0].prediction)
    assert found.a.probe.fingerprint == found.b.probe.fingerprint
    assert found.values["drift/significant"] > 0.5
    assert found.values["drift"] == pytest.approx(float(found.drift.mean()))
    assert [row["moved"] for row in found.rows()] == found.moved.tolist()


class Coarser(Net):
    """The same network on a grid half as fine."""

    def __init__(self):
        super().__init__()
        self.features = torch.nn.Sequential(self.features, torch.nn.AvgPool2d(2))


def test_models_of_different_grids_are_compared_on_the_coarser(tmp_path):
    torch.manual_seed(0)
    fine, coarse = Net(), Coarser()
    coarse.features[0].load_state_dict(fine.features.state_dict())
    coarse.head.load_state_dict(fine.head.state_dict())
    found = compare(fine, coarse, datamodule=Data(), save_dir=tmp_path, target_layer="features", **SETTINGS)
    assert found.a[0].attribution.shape[1:] == (8, 8)
    assert found.b[0].attribution.shape[1:] == (4, 4)
    assert float(found.drift.mean()) < 0.1  # they look at the same places


def test_checkpoints_are_compared_by_one_command(checkpoints, capsys):  # noqa: F811
    first, *_, last = sorted(checkpoints.glob("*.ckpt"))
    small = ["--set", "num_images=4", "--set", "num_samples=8", "--set", "metrics=[]"]
    assert main(["compare", str(first), str(last), *SOURCE, *small]) == 0
    page = Path(capsys.readouterr().out.strip().splitlines()[-1])
    assert page == checkpoints.parent / "compare" / f"{first.stem}-{last.stem}" / "compare.html"


def test_help_fits_a_screen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        build_parser().parse_args(["compare", "--help"])
    assert len(capsys.readouterr().out.splitlines()) <= 50
