"""The examples that people copy run, on a few pictures drawn here and without a network."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import wandb
from PIL import Image

from egcam_lightning import History

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def example(monkeypatch, tmp_path):
    """Import an example as its own folder sees it, and leave nothing of it behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    before, state = set(sys.modules), torch.get_rng_state()

    def load(name: str, folder: Path = EXAMPLES):
        monkeypatch.syspath_prepend(str(folder))
        return importlib.import_module(name)

    yield load
    torch.set_rng_state(state)
    wandb.finish()  # as the end of a script does
    for name in set(sys.modules) - before:
        if str(EXAMPLES) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two classes, told apart by their colour: ``train`` with eight pictures of each, ``val`` with four."""
    root, generator = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 4)):
        for place, name in enumerate(("apples", "pears")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 160, (72, 80, 3), dtype=np.uint8)
                pixels[20:50, 20:50, place] = 250
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


def check(run_dir: Path, images: int) -> History:
    """The run has left a page, and maps of so many images, before training and after each epoch."""
    history = History.load(run_dir)
    assert (run_dir / "report.html").is_file()
    assert len(history.probe.images) == images
    assert [snapshot.when for snapshot in history.snapshots] == ["start", "epoch"]
    assert all(snapshot.attribution.isfinite().all() for snapshot in history.snapshots)
    return history


def test_a_timm_model_is_fine_tuned(example, photographs, tmp_path):
    pytest.importorskip("timm")
    arguments = [str(photographs), "--model", "resnet10t", "--size", "64", "--epochs", "1", "--offline"]
    callback = example("finetune_timm").main([*arguments, "--out", str(tmp_path / "runs")])
    history = check(callback.run_dir, 8)
    assert history.probe.class_names == ("apples", "pears")
    assert history.probe.restored
    assert list(tmp_path.rglob("*.wandb"))


def test_a_transformer_of_hugging_faces_is_fine_tuned(example, photographs, tmp_path):
    pytest.importorskip("transformers")
    arguments = [str(photographs), "--size", "64", "--epochs", "1", "--offline", "--out", str(tmp_path / "runs")]
    history = check(example("finetune_hf").main(arguments).run_dir, 8)
    assert history.snapshots[-1].attribution.shape == (8, 4, 4)
    assert history.probe.class_names == ("apples", "pears")


def test_a_segmentation_is_explained_over_the_discs(example, tmp_path):
    segmentation = example("segmentation")
    callback = segmentation.main(["--epochs", "1", "--images", "64", "--out", str(tmp_path)])
    history = check(callback.run_dir, 16)
    assert history[-1].target.tolist() == [segmentation.DISC] * 16
    assert "relevance_mass" in history[-1].metrics


def test_a_lightning_cli_project_runs_from_its_yaml_and_can_be_replayed(example, photographs, tmp_path):
    main = example("main", EXAMPLES / "cli").main
    small = ["--trainer.max_epochs=1", "--data.size=64", "--data.batch_size=8", "--data.workers=0"]
    cli = main(["fit", "--config", str(EXAMPLES / "cli" / "config.yaml"), f"--data.root={photographs}", *small])
    run = Path(cli.trainer.log_dir)
    history = check(run / "egcam", 8)
    assert history.probe.class_names == ("apples", "pears")

    from egcam_lightning.commands.main import main as egcam

    words = ["replay", str(run / "checkpoints"), "--config", str(run / "config.yaml"), "-o", str(tmp_path / "again")]
    assert egcam(words) == 0
    assert len(History.load(tmp_path / "again" / "egcam")) == 1


def test_the_four_runs_of_the_documentation_are_trained(example, tmp_path):
    pytest.importorskip("sklearn")
    four = example("four_runs")
    data, _ = four.make_run("one-class", 0)
    data.copies = 1
    data.setup()
    tagged = (data.val.images[:, :, -5, -5] == four.TAG_COLOURS[four.TAGGED]).all(1)
    assert torch.equal(tagged, data.val.labels == four.TAGGED)
    assert not data.val.masks[tagged][:, four.tag_mask()].any()
    assert four.make_run("shortcut", 0)[0].shortcut
    assert four.make_run("collapse", 0)[1].lr > 100 * four.make_run("healthy", 0)[1].lr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_figures_of_the_documentation_are_drawn(example, tmp_path):
    pytest.importorskip("sklearn")
    words = ["--only", "healthy", "shortcut", "--epochs", "1", "--out", str(tmp_path / "four")]
    example("four_runs").main(words)
    example("good_and_bad").main(["--runs", str(tmp_path / "four"), "-o", str(tmp_path / "figures")])
    for name in ("numbers", "path"):
        with Image.open(tmp_path / "figures" / f"{name}.png") as figure:
            assert min(figure.size) > 300
    with pytest.raises(SystemExit):
        example("good_and_bad").main(["--runs", str(tmp_path / "nothing")])
