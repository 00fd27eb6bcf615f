"""A replay is what the callback would have left; what is finished of it is kept; bad input is told of in a sentence."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from egcam_lightning import History
from egcam_lightning.metrics.functional import rank_drift
from egcam_lightning.replaying.replay import replay
from egcam_lightning.training.snapshotter import Snapshotter
from tests.replaying.conftest import SETTINGS, Data, Net
from tests.support.pictures import squares


@pytest.fixture
def taken(monkeypatch):
    """The occasions of the snapshots that were computed."""
    occasions, take = [], Snapshotter.take

    def noted(self, probe, baselines, generation, when, **kwargs):
        occasions.append((when.epoch, when.step))
        return take(self, probe, baselines, generation, when, **kwargs)

    monkeypatch.setattr(Snapshotter, "take", noted)
    return occasions


@pytest.fixture
def run(live, tmp_path):
    """A copy of the live run's checkpoints."""
    return Path(shutil.copytree(live[0] / "checkpoints", tmp_path / "checkpoints"))


def test_a_run_and_its_replay_agree(live, run):
    _, callback = live
    replayed, lived = replay(run, Net(), Data(), **SETTINGS), callback.history
    assert replayed.probe.fingerprint == lived.probe.fingerprint
    events = [snapshot.key for snapshot in lived.snapshots if snapshot.when == "epoch"]
    assert [snapshot.key for snapshot in replayed.snapshots] == events
    for before, after in zip(lived.snapshots[1:], replayed.snapshots, strict=True):
        assert before.layer == after.layer
        assert torch.equal(before.target, after.target)
        assert torch.equal(before.prediction, after.prediction)
        likeness = 1 - rank_drift(before.attribution, after.attribution)
        assert float(likeness.min()) > 0.9  # with other baselines
        assert before.score == pytest.approx(after.score, rel=1e-4)
    assert [f.sentence for f in replayed.audit] == [f.sentence for f in lived.audit]
    assert replayed.audit.rows() == lived.audit.rows()
    assert replayed.audit.faithfulness == lived.audit.faithfulness == ()  # which is for `egcam audit` to pay
    read = History.load(run.parent / "replay" / "egcam")
    assert [s.key for s in read.snapshots] == events
    assert (run.parent / "replay" / "egcam" / "report.html").is_file()


def test_all_checkpoints_have_the_baselines_of_a_first_snapshot(live, run):
    _, callback = live
    replayed = replay(run, Net(), Data(), **SETTINGS)
    assert {s.baselines for s in replayed.snapshots} == {callback.history[0].baselines}
    assert all("drift/previous" in s.metrics for s in replayed.snapshots[1:])


def test_the_module_and_the_run_are_left_as_they_were(run):
    net, before = Net(), sorted(run.iterdir())
    weights = {key: value.clone() for key, value in net.state_dict().items()}
    hooks = dict(vars(net))
    replay(run, net, Data(), **SETTINGS)
    assert all(torch.equal(value, weights[key]) for key, value in net.state_dict().items())
    assert not {"configure_optimizers", "training_step"} & vars(net).keys()
    assert hooks.keys() >= {"_modules"}
    assert sorted(run.iterdir()) == before


class Trains(Net):
    """A module that must not be trained, and has hooks that believe that it is."""

    def trained(self, *args):
        raise AssertionError("this belongs to training")

    training_step = configure_optimizers = configure_callbacks = trained
    on_train_start = on_train_end = on_fit_end = trained


def test_nothing_is_trained(run):
    assert len(replay(run, Trains(), Data(), **SETTINGS)) == 4


def test_nothing_is_done_twice(run, taken):
    late = sorted(run.glob("epoch*.ckpt"))[2:]
    aside = [path.rename(run.parent / path.name) for path in (*late, run / "last.ckpt")]
    first = replay(run, Net(), Data(), **SETTINGS)
    assert len(taken) == len(first) == 2
    for path in aside:  # the run has gone on meanwhile
        path.rename(run / path.name)
    second = replay(run, Net(), Data(), **SETTINGS)
    assert len(taken) == len(second) == 4
    third = replay(run, Net(), Data(), **SETTINGS)
    assert len(taken) == 4
    assert [dict(s.metrics) for s in third.snapshots] == [dict(s.metrics) for s in second.snapshots]
    whole = replay(run, Net(), Data(), save_dir=run.parent / "whole", **SETTINGS)
    for one, other in zip(whole.snapshots, third.snapshots, strict=True):
        assert torch.equal(one.attribution, other.attribution)
        assert dict(one.metrics) == dict(other.metrics)


def test_what_was_interrupted_goes_on_where_it_stopped(run, taken, monkeypatch):
    noted = Snapshotter.take

    def interrupted(self, *args, **kwargs):
        if len(taken) == 2:
            monkeypatch.setattr(Snapshotter, "take", noted)
            raise KeyboardInterrupt
        return noted(self, *args, **kwargs)

    monkeypatch.setattr(Snapshotter, "take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replay(run, Net(), Data(), **SETTINGS)
    assert len(replay(run, Net(), Data(), **SETTINGS)) == 4
    assert taken == sorted(set(taken))
    assert len(taken) == 4


@pytest.mark.parametrize("what", ["settings", "weights"])
def test_what_has_changed_is_done_anew(run, taken, what):
    replay(run, Net(), Data(), **SETTINGS)
    settings = {**SETTINGS, "num_images": 4} if what == "settings" else SETTINGS
    if what == "weights":
        first = min(run.glob("epoch*.ckpt"))
        content = torch.load(first)
        content["state_dict"]["head.bias"] += 1
        torch.save(content, first)
    replay(run, Net(), Data(), **settings)
    assert len(taken) == 8


class Stream(IterableDataset):
    def __iter__(self):
        return iter(squares(32))


class StreamData(Data):
    def train_dataloader(self):
        return DataLoader(Stream(), 8)

    def val_dataloader(self):
        return DataLoader(Stream(), 8)


@pytest.mark.filterwarnings("ignore")
def test_data_without_an_index_are_replayed_by_their_first_batches(run, taken):
    found = replay(run, Net(), StreamData(), **SETTINGS)
    assert len(found) == 4
    assert {s.baselines for s in found.snapshots} == {1}
    torch.testing.assert_close(found.probe.images, replay(run, Net(), StreamData(), **SETTINGS).probe.images)
    assert len(taken) == 4


# ---- bad input


class Wider(Net):
    def __init__(self):
        super().__init__()
        self.more = torch.nn.Linear(2, 2)


class NoValidation(Data):
    def val_dataloader(self):
        return []


def test_no_checkpoint_is_told_of(tmp_path):
    with pytest.raises(ValueError, match=r"holds no checkpoints \(\*.ckpt\)"):
        replay(tmp_path, Net(), Data())
    (tmp_path / "version_0" / "checkpoints").mkdir(parents=True)
    (tmp_path / "version_0" / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(ValueError, match=r"did you mean .*version_0.checkpoints\?"):
        replay(tmp_path, Net(), Data())
    with pytest.raises(ValueError, match="There is no checkpoint"):
        replay(tmp_path / "nowhere.ckpt", Net(), Data())


def test_another_model_is_told_of_with_its_keys(run):
    with pytest.raises(ValueError, match=r"of another model than Wider: missing are more\.weight, more\.bias\."):
        replay(run, Wider(), Data(), **SETTINGS)


def test_data_without_validation_are_told_of(run):
    with pytest.raises(ValueError, match="NoValidation has no validation data"):
        replay(run, Net(), NoValidation(), **SETTINGS)


def test_two_runs_are_told_of(run, tmp_path):
    content = torch.load(run / "last.ckpt")
    content["state_dict"]["head.bias"] += 1
    torch.save(content, run / "other.ckpt")
    with pytest.raises(ValueError, match=r"are of one step with different weights, so of two runs"):
        replay(run, Net(), Data(), **SETTINGS)


def test_runs_that_kept_their_checkpoints_apart_are_told_of(run):
    content = torch.load(run / "last.ckpt")
    (state,) = (one for one in content["callbacks"].values() if "dirpath" in one)
    state["dirpath"] = "/elsewhere"
    content["global_step"] = 6  # between two of the others
    torch.save(content, run / "other.ckpt")
    with pytest.raises(ValueError, match=r"are of two runs, which kept them in .*checkpoints and /elsewhere\."):
        replay(run, Net(), Data(), **SETTINGS)
    content["global_step"] = 99  # a resumed run goes on behind
    torch.save(content, run / "other.ckpt")
    assert len(replay(run, Net(), Data(), **SETTINGS)) == 5


def test_architectures_are_told_of_and_how_they_split(run):
    content = torch.load(run / "last.ckpt")
    del content["state_dict"]["head.bias"]
    content["global_step"] = 99
    torch.save(content, run / "later.ckpt")
    with pytest.raises(ValueError, match=r"of 2 architectures: .* missing are head\.bias.* \| later\.ckpt"):
        replay(run, Net(), Data(), **SETTINGS)


class Notes:
    """Something that is neither a tensor nor plain."""


def test_what_has_to_be_trusted_is_named(run):
    for path in run.glob("*.ckpt"):
        torch.save({**torch.load(path), "notes": Notes()}, path)
    with pytest.raises(ValueError, match=r"holds objects of tests\.replaying\.test_replay\.Notes\..*--trust"):
        replay(run, Net(), Data(), **SETTINGS)
    assert len(replay(run, Net(), Data(), trust=True, **SETTINGS)) == 4


def test_what_is_damaged_is_told_of(tmp_path):
    (tmp_path / "torn.ckpt").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(ValueError, match="is damaged, or no checkpoint"):
        replay(tmp_path, Net(), Data())


def test_a_setting_that_the_callback_does_not_have_is_an_error(run):
    with pytest.raises(TypeError, match="num_pictures"):
        replay(run, Net(), Data(), num_pictures=3)
