"""A network of a library and real photographs: an audit by one command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from egcam_lightning import History
from egcam_lightning.commands.main import main

REAL = Path(__file__).resolve().parents[3] / "shared" / "real"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not REAL.is_dir(), reason=f"the photographs and weights are not at {REAL}"),
]


def test_a_network_of_a_library_and_a_folder_of_photographs_give_an_audit(tmp_path, capsys):
    files = sorted((REAL / "imagenet").glob("*.jpg"))[::20]
    (tmp_path / "labels.txt").write_text("\n".join(f"{file.name} {int(file.name[:4])}" for file in files))
    command = ["audit", str(REAL / "weights" / "deit_tiny.safetensors"), "--model", "timm:deit_tiny_patch16_224"]
    command += ["--images", str(REAL / "imagenet"), "--labels", str(tmp_path / "labels.txt"), "-o", str(tmp_path)]
    assert main([*command, "--set", "num_images=8", "--set", "num_samples=8", "--set", "metrics=[]"]) == 0
    page = Path(capsys.readouterr().out.strip().splitlines()[-1])
    history = History.load(page.parent)
    right = (history[0].prediction == history.probe.labels).float().mean()
    assert right >= 0.75  # the transform is the network's own
    assert json.loads((page.parent / "findings.json").read_text())["classes"]
