"""A run folder belongs to one run: the next one leaves it as it is, and a resumed one goes on in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from egcam_lightning import History
from tests.support.faulty import heard
from tests.support.fingerprints import fingerprint
from tests.support.fits import fit, make_callback


def content(folder: Path) -> dict[str, str]:
    """Every file below a folder, and a hash of its bytes."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): fingerprint(path.read_bytes()) for path in files}


def run(tmp_path: Path, *more, save_dir: str | None = "files", **kwargs):
    """A fit with checkpoints; its callback, and what was said."""
    callback = make_callback(save_dir=save_dir and str(tmp_path / save_dir))
    checkpoint = ModelCheckpoint(tmp_path / "checkpoints", filename="{epoch}", save_top_k=-1)
    with heard() as messages:
        fit(tmp_path, callback, *more, checkpoint, enable_checkpointing=True, **kwargs)
    return callback, [text for text in messages if "another run" in text]


def test_a_folder_used_again_keeps_its_history_and_the_new_run_says_where_it_is(tmp_path):
    first, told = run(tmp_path, max_epochs=3)
    assert first.run_dir == tmp_path / "files" / "egcam"
    assert told == []
    before = content(first.run_dir)
    assert {"history.jsonl", "probe.npz", "report.html"} < before.keys()
    for number in (1, 2):
        callback, told = run(tmp_path, max_epochs=1)
        assert callback.run_dir == tmp_path / "files" / f"version_{number}" / "egcam"
        assert len(History.load(callback.run_dir)) == 2
        assert len(told) == 1
        assert str(callback.run_dir) in told[0]
        assert content(first.run_dir) == before


@pytest.mark.parametrize("save_dir", ["files", None])
def test_a_resumed_run_goes_on_in_its_own_folder(tmp_path, save_dir):
    """Whatever other runs did beside it in the meantime, and whether or not there is a logger."""
    first, _ = run(tmp_path, save_dir=save_dir, logger=False, max_epochs=2)
    second, _ = run(tmp_path, save_dir=save_dir, logger=False, max_epochs=2)
    third, _ = run(tmp_path, save_dir=save_dir, logger=False, max_epochs=1)
    assert len({first.run_dir, second.run_dir, third.run_dir}) == 3
    others = content(first.run_dir), content(third.run_dir)
    path = tmp_path / "checkpoints" / "epoch=1-v1.ckpt"  # the second's
    resumed, told = run(tmp_path, save_dir=save_dir, logger=False, max_epochs=3, ckpt_path=str(path))
    assert resumed.run_dir == second.run_dir
    assert told == []
    assert [s.epoch for s in History.load(second.run_dir)] == [0, 0, 1, 2]
    assert (content(first.run_dir), content(third.run_dir)) == others


def test_a_logger_that_is_given_its_version_twice_keeps_both_histories(tmp_path):
    """The folder that ModelCheckpoint would use is then the same one."""
    first, _ = run(tmp_path, save_dir=None, logger=CSVLogger(tmp_path, version=0))
    before = content(first.run_dir)
    second, told = run(tmp_path, save_dir=None, logger=CSVLogger(tmp_path, version=0))
    assert first.run_dir == tmp_path / "lightning_logs" / "version_0" / "egcam"
    assert second.run_dir == tmp_path / "lightning_logs" / "version_0" / "version_1" / "egcam"
    assert len(told) == 1
    assert content(first.run_dir) == before


def test_instances_share_a_folder_by_their_prefixes_and_stay_together(tmp_path):
    folders = []
    for _ in range(2):
        twin = make_callback(save_dir=str(tmp_path / "files"), log_prefix="twin")
        callback, _ = run(tmp_path, twin, max_epochs=1)
        folders += [callback.run_dir, twin.run_dir]
        assert [len(History.load(folder)) for folder in folders[-2:]] == [2, 2]
    assert [str(folder.relative_to(tmp_path / "files")) for folder in folders] == [
        "egcam",
        "twin",
        "version_1/egcam",
        "version_1/twin",
    ]


def test_versions_of_somebody_else_are_passed_over(tmp_path):
    (tmp_path / "files" / "version_4" / "checkpoints").mkdir(parents=True)
    run(tmp_path, max_epochs=1)
    callback, _ = run(tmp_path, max_epochs=1)
    assert callback.run_dir == tmp_path / "files" / "version_5" / "egcam"


def test_a_run_that_starts_afresh_leaves_the_history_that_it_could_not_read(tmp_path):
    first, _ = run(tmp_path, max_epochs=2)
    before = content(first.run_dir)
    path = tmp_path / "checkpoints" / "epoch=1.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    (key,) = (key for key in checkpoint["callbacks"] if "ExpectedGradCAM" in key)
    checkpoint["callbacks"][key].pop("schedule")
    torch.save(checkpoint, path)
    resumed, _ = run(tmp_path, max_epochs=3, ckpt_path=str(path))
    assert [s.epoch for s in History.load(resumed.run_dir)] == [2]
    assert content(first.run_dir) == before


@pytest.mark.parametrize("content", [b"", b"no JSON\n", b"[1]\n", b'{"run": 3}\n', b"{" * 100])
def test_a_history_that_does_not_say_whose_it_is_is_another_runs(tmp_path, content):
    (tmp_path / "files" / "egcam").mkdir(parents=True)
    (tmp_path / "files" / "egcam" / "history.jsonl").write_bytes(content)
    callback, _ = run(tmp_path, max_epochs=1)
    assert callback.run_dir == tmp_path / "files" / "version_1" / "egcam"
    assert (tmp_path / "files" / "egcam" / "history.jsonl").read_bytes() == content
