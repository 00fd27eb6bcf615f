"""``egcam replay``: a page by one command for a run without the callback, and it goes on where it was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI

from egcam_lightning import ExpectedGradCAMCallback, History
from egcam_lightning.commands.main import build_parser, main
from tests.replaying.conftest import Net
from tests.support.fits import fit

ROOT = Path(__file__).parents[2]
SOURCE = ["--model", "tests.replaying.conftest:Net", "--data", "tests.replaying.conftest:Data"]
SMALL = ["--set", "num_images=4", "--set", "num_samples=4", "--set", "metrics=[consensus]"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A run of three epochs without the callback."""
    folder = tmp_path_factory.mktemp("without")
    fit(
        folder,
        ModelCheckpoint(folder / "checkpoints", save_top_k=-1),
        net=Net(),
        max_epochs=3,
        enable_checkpointing=True,
    )
    return folder / "checkpoints"


def test_a_run_without_the_callback_gives_a_page_by_one_command(checkpoints, capsys):
    assert main(["replay", str(checkpoints), *SOURCE, *SMALL]) == 0
    said = capsys.readouterr()
    assert "GPU available" not in said.err  # what a Trainer says of itself
    assert "100%" in said.err  # progress, with an estimate
    page = Path(said.out.strip())
    assert page == checkpoints.parent / "replay" / "egcam" / "report.html"
    assert page.is_file()
    history = History.load(page.parent)
    assert [snapshot.epoch for snapshot in history.snapshots] == [0, 1, 2]
    assert history.audit is not None


def test_a_limit_turns_a_build_red_and_green(checkpoints, tmp_path, capsys):
    command = ["replay", str(checkpoints), *SOURCE, *SMALL, "-o", str(tmp_path)]
    assert main([*command, "--fail-if", "consensus>2"]) == 0
    assert main([*command, "--fail-if", "consensus>-2"]) == 1
    assert "consensus is " in capsys.readouterr().err
    assert main([*command, "--fail-if", "drift/significan>0.5"]) == 2
    assert "Did you mean 'drift/significant'" in capsys.readouterr().err


def test_what_was_killed_goes_on_where_it_stopped(checkpoints, tmp_path):
    command = ["replay", str(checkpoints), *SOURCE, *SMALL, "-o", str(tmp_path), "--set", "num_samples=1024"]
    process = subprocess.Popen(
        [sys.executable, "-m", "egcam_lightning", *command],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    history = tmp_path / "egcam" / "history.jsonl"
    kept = tmp_path / "egcam" / "replay.pt"
    give_up = time.monotonic() + 120
    while not kept.is_file() and process.poll() is None and time.monotonic() < give_up:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = len(torch.load(kept)["done"])
    assert 1 <= done < 3
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "egcam" / "panels").iterdir()}
    first = history.read_text().splitlines()[1 : 1 + done]
    assert main(command) == 0
    after = history.read_text().splitlines()[1:]
    assert [json.loads(line) for line in after[:done]] == [json.loads(line) for line in first]
    assert len(after) == 3
    finished = sorted(before)[:done]
    assert all(path.stat().st_mtime_ns == before[path] for path in finished)  # not drawn again


@pytest.mark.filterwarnings("ignore")
def test_the_configuration_that_lightning_cli_saves_is_enough(tmp_path, capsys):
    settings = {"num_images": 4, "num_samples": 4, "metrics": ["consensus"], "max_overhead": None, "seed": 3}
    callback = {"class_path": "egcam_lightning.ExpectedGradCAMCallback", "init_args": settings}
    trainer = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "default_root_dir": str(tmp_path),
        "callbacks": [callback],
        "enable_progress_bar": False,
        "log_every_n_steps": 1,
    }
    config = {
        "seed_everything": 1,
        "trainer": trainer,
        "model": {"class_path": "tests.support.fits.PooledNet", "init_args": {"classes": 4}},
        "data": {"class_path": "tests.replaying.conftest.Data"},
    }
    (tmp_path / "given.yaml").write_text(json.dumps(config))
    cli = LightningCLI(args=["fit", "--config", str(tmp_path / "given.yaml")])
    saved = Path(cli.trainer.log_dir) / "config.yaml"
    (live,) = (c for c in cli.trainer.callbacks if isinstance(c, ExpectedGradCAMCallback))
    assert main(["replay", str(saved.parent / "checkpoints"), "--config", str(saved)]) == 0
    replayed = History.load(Path(capsys.readouterr().out.strip().splitlines()[-1]).parent)
    assert replayed.probe.fingerprint == live.history.probe.fingerprint
    assert replayed[-1].key == live.history[-1].key


# ---- bad input


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--model", "nowhere:Net"],
            "--model nowhere:Net does not import (ModuleNotFoundError: No module named 'nowhere')",
        ),
        (["--model", "tests.replaying.conftest:Nett"], "does not import (AttributeError"),
        (["--model", "tests.replaying.conftest:Data"], "--model makes a Data, and no LightningModule"),
        ([], "Expected `--model MODULE:NAME`, or a `--config` with a model, but got neither."),
        ([*SOURCE, "--set", "num_pictures=3"], "Expected `--set` to be an argument of ExpectedGradCAMCallback"),
        ([*SOURCE, "--set", "num_images=0"], "num_images"),
        ([*SOURCE, "--fail-if", "consensus"], "Expected `--fail-if` to be a name"),
        ([*SOURCE, "--config", "/nowhere.yaml"], "/nowhere.yaml"),
    ],
)
def test_bad_input_is_told_of_in_a_sentence(checkpoints, capsys, options, said):
    assert main(["replay", str(checkpoints), *options]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("egcam replay: ")
    assert said in last


class Deep(Net):
    """A module that takes an argument which no checkpoint knows."""

    def __init__(self, depth):
        super().__init__()


def test_a_module_that_cannot_be_made_is_told_of(checkpoints, capsys):
    assert main(["replay", str(checkpoints), "--model", f"{__name__}:Deep"]) == 2
    assert "Deep cannot be made of what the checkpoint says of its arguments (nothing)" in capsys.readouterr().err


def test_a_file_in_the_folder_replaces_nothing_that_is_installed(checkpoints, tmp_path, monkeypatch):
    (tmp_path / "tests.py").write_text("raise SystemExit('executed')")
    (tmp_path / "yaml.py").write_text("raise SystemExit('executed')")
    monkeypatch.chdir(tmp_path)
    console = "from egcam_lightning.commands.main import main; raise SystemExit(main())"
    done = subprocess.run(
        [sys.executable, "-c", console, "replay", str(checkpoints), *SOURCE, *SMALL, "-o", str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_help_fits_a_screen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        build_parser().parse_args(["replay", "--help"])
    assert len(capsys.readouterr().out.splitlines()) <= 50
