"""What is logged has the keys that the user gave and that the page knows, and belongs to the snapshot it comes with."""

from __future__ import annotations

import csv
import math
import time
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import TensorDataset
from torchmetrics import MetricCollection

from egcam_lightning.metrics import Infidelity
from egcam_lightning.metrics.registry import AUDITED, METRICS, NUMBERS, OVERHEAD, OWN
from tests.support import faulty
from tests.support.faulty import heard
from tests.support.fits import Net, fit, make_callback, train_loader, val_loader
from tests.support.networks import ViT
from tests.support.pictures import squares


def with_masks(count, seed=0):
    """Images, labels and masks of the bright squares."""
    data = squares(count, seed)
    return TensorDataset(*data.tensors, (data.tensors[0].mean(1) > 1).float())


def rows(trainer):
    """What the CSV logger got, a row a snapshot: values by key without the prefix."""
    with open(Path(trainer.logger.log_dir) / "metrics.csv") as file:
        read = [{k: float(v) for k, v in row.items() if v and k.startswith("egcam/")} for row in csv.DictReader(file)]
    return [{key.removeprefix("egcam/"): value for key, value in row.items()} for row in read if row]


class Tokens(Net):
    """A transformer, whose class token has no place on the image."""

    def __init__(self):
        super().__init__()
        self.features, self.head = ViT(), nn.Identity()


class Slow(CSVLogger):
    """Takes its time over what it gets."""

    def log_metrics(self, metrics, step=None):
        time.sleep(0.3)
        super().log_metrics(metrics, step)


# ---- one set of keys


def test_a_snapshot_the_loggers_and_the_page_have_the_same_keys(tmp_path):
    data = {"train": train_loader(with_masks(32)), "val": val_loader(with_masks(16, 1))}
    few = {"num_images": 8, "num_baselines": 8, "num_samples": 8, "strict": False}
    sick = make_callback(**few, metrics=tuple(METRICS), masks_key=2)
    with heard():
        fits = [
            (sick, fit(tmp_path, sick, net=faulty.SickNet(math.nan, (3,)), max_epochs=5, **data)[0]),
            (placed := make_callback(**few, target_layer="features.blocks.0"), fit(tmp_path, placed, net=Tokens())[0]),
        ]
    known = set()
    for callback, trainer in fits:
        logged = rows(trainer)
        logged = [row for row in logged if not row.keys() & set(AUDITED)]  # the audit's, after the last snapshot
        assert len(logged) == len(callback.history)
        for snapshot, row in zip(callback.history, logged, strict=True):
            assert row.keys() == snapshot.metrics.keys() | set(OVERHEAD)
            known |= snapshot.metrics.keys()
    known |= set(AUDITED)  # which snapshots have with `audit_every`: see test_audits.py
    assert known == NUMBERS.keys() == METRICS.keys() | set(OWN)


# ---- what it cost


def test_what_is_logged_of_the_cost_is_of_the_snapshot_that_it_comes_with(tmp_path):
    callback = make_callback()
    trainer, _ = fit(tmp_path, callback, logger=Slow(tmp_path))
    logged = rows(trainer)
    assert len(logged) == 3
    for row in logged:
        parts = {key: value for key, value in row.items() if key.startswith("overhead/")}
        assert sum(parts.values()) <= row["overhead_seconds"]
    # What logging took is known when it is over: the budget, and with it the next snapshot's share, have it.
    assert callback.overhead_seconds > 0.3 + sum(row["overhead_seconds"] for row in logged)


# ---- metrics under keys of the user's own


def test_metrics_of_one_class_are_each_logged_under_the_key_that_they_were_given(tmp_path):
    metrics = {"coarse": Infidelity(num_perturbations=2), "fine": Infidelity(num_perturbations=8), "mass": "sparseness"}
    callback = make_callback(metrics=metrics)
    trainer, _ = fit(tmp_path, callback)
    for snapshot, row in zip(callback.history, rows(trainer), strict=True):
        assert metrics.keys() <= snapshot.metrics.keys()
        assert metrics.keys() <= row.keys()
        assert snapshot.metrics["coarse"] != snapshot.metrics["fine"]
    assert "infidelity" not in callback.history[-1].metrics


def test_a_collection_of_torchmetrics_gives_its_own_names(tmp_path):
    collection = MetricCollection(
        {"a": Infidelity(num_perturbations=2), "b": Infidelity(num_perturbations=8)}, prefix="my_"
    )
    callback = make_callback(metrics=collection)
    fit(tmp_path, callback, max_epochs=1)
    assert {"my_a", "my_b"} <= callback.history[-1].metrics.keys()


def test_masks_that_a_checkpoint_does_not_have_are_missed_with_a_sentence(tmp_path):
    data = {"train": train_loader(with_masks(32)), "val": val_loader(with_masks(16, 1))}
    trainer, _ = fit(tmp_path, make_callback(), max_epochs=1, **data)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    resumed = make_callback(metrics=("relevance_mass", "sparseness"), masks_key=2)
    with pytest.warns(UserWarning, match=r"written without `masks_key`.* Begin a new run to have them"):
        fit(tmp_path, resumed, ckpt_path=str(tmp_path / "one.ckpt"), **data)
    assert "sparseness" in resumed.history[-1].metrics
    assert "relevance_mass" not in resumed.history[-1].metrics


@pytest.mark.parametrize(
    ("weighting", "name"),
    [("layercam", "Expected LayerCAM"), ("gradcam++", "Expected Grad-CAM++"), ("optimal", "Expected optimal weights")],
)
def test_the_page_and_the_announcement_name_a_weighting_that_is_asked_for(tmp_path, weighting, name, monkeypatch):
    said = []
    monkeypatch.setattr("egcam_lightning.training.session.rank_zero_info", said.append)
    callback = make_callback(weighting=weighting, metrics="default")
    trainer, _ = fit(tmp_path, callback)
    assert {snapshot.layer.partition(" ")[2] for snapshot in callback.history.snapshots} == {f"({name})"}
    assert f"({name})" in (Path(trainer.logger.log_dir) / "egcam" / "report.html").read_text()
    assert any(f"({name})" in line for line in said)
    assert all(map(math.isfinite, callback.history.snapshots[-1].metrics.values()))
