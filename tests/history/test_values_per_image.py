"""A value per image is declared once, beside its field: from that alone it is stored, and shown where it says."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, fields, replace

import pytest
import torch
from torch import Tensor

from egcam_lightning.history.codec import round_maps, snapshot_from_state, snapshot_to_state
from egcam_lightning.history.folder import RunFolder
from egcam_lightning.history.history import History
from egcam_lightning.history.packed import PackedSnapshots
from egcam_lightning.history.records import PerImage, ProbeImages, Snapshot
from egcam_lightning.pictures.draw import draw
from egcam_lightning.report import build_report
from egcam_lightning.sinks.wandb import WandbSink

N = 3
COUNTS, ENTROPY = torch.tensor([7, 0, 2]), torch.tensor([0.25, 1.5, torch.nan])


@dataclass(frozen=True, eq=False)
class LongerSnapshot(Snapshot):
    """One integer and one number more, and nothing else."""

    peaks: Tensor | None = field(default=None, metadata={"per_image": PerImage(integer=True, page="peaks")})
    entropy: Tensor | None = field(
        default=None,
        metadata={"per_image": PerImage(page="mapEntropy", title="entropy", caption="entropy {:.1f}".format)},
    )


def longer(epoch: int = 0, **changes: object) -> LongerSnapshot:
    ones = torch.ones(N)
    snapshot = LongerSnapshot(
        epoch, 9, "epoch", "layer4", 1, round_maps(torch.ones(N, 4, 6)), ones.long(), ones.long(), *[ones] * 4,
        peaks=COUNTS, entropy=ENTROPY,
    )  # fmt: skip
    return replace(snapshot, **changes)


PROBE = ProbeImages(torch.zeros(N, 16, 24, 3, dtype=torch.uint8), restored=True)


@pytest.fixture
def declared(monkeypatch):
    """As if the fields stood in ``Snapshot``, for what reads snapshots and for what all of them have."""
    monkeypatch.setattr("egcam_lightning.history.codec.Snapshot", LongerSnapshot)
    monkeypatch.setattr("egcam_lightning.history.folder.Snapshot", LongerSnapshot)
    monkeypatch.setattr("egcam_lightning.report.payload.Snapshot", LongerSnapshot)


def assert_kept(snapshot: Snapshot) -> None:
    for name, expected in (("peaks", COUNTS), ("entropy", ENTROPY)):
        found = getattr(snapshot, name)
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_a_checkpoint_and_memory_keep_it(declared):
    assert_kept(snapshot_from_state(snapshot_to_state(longer())))
    packed = PackedSnapshots([longer()])
    assert_kept(packed[0])
    assert_kept(PackedSnapshots.from_states(packed.states())[0])


def test_the_run_folder_keeps_it(declared, tmp_path):
    folder = RunFolder(tmp_path)
    folder.open(PROBE, snapshots=[longer(0)])
    folder.append(longer(1))
    for snapshot in History.load(tmp_path).snapshots:
        assert_kept(snapshot)
    line = json.loads((tmp_path / "history.jsonl").read_text().splitlines()[-1])
    assert (line["values"]["peaks"], line["values"]["entropy"]) == ([7, 0, 2], [0.25, 1.5, None])


def test_a_history_of_before_is_read_without_it(declared, tmp_path):
    before = longer(peaks=None, entropy=None)
    RunFolder(tmp_path).open(PROBE, snapshots=[before])
    for snapshot in (History.load(tmp_path)[0], snapshot_from_state(snapshot_to_state(before))):
        assert (snapshot.peaks, snapshot.entropy) == (None, None)


def test_the_page_has_it_under_its_key_and_title(declared, tmp_path):
    page = build_report(History(PROBE, (longer(),)), tmp_path / "report.html").read_text(encoding="utf-8")
    (data,) = re.findall(r'<script[^>]*id="data"[^>]*>(.*?)</script>', page, re.S)
    payload = json.loads(data)
    (snapshot,) = payload["runs"][0]["snapshots"]
    assert (snapshot["peaks"], snapshot["mapEntropy"]) == ([7, 0, 2], [0.25, 1.5, None])
    assert payload["perImage"][-1] == ["entropy", "mapEntropy"]


def test_captions_speak_of_it():
    captions = draw(longer(), PROBE).captions
    assert ["entropy 0.2" in captions[0], "entropy 1.5" in captions[1], "entropy nan" in captions[2]] == [True] * 3
    assert not any("peaks" in caption for caption in captions)


class Recorder:
    """Keeps the last table, and the rows that it had when it was sent."""

    def log_image(self, key, images, step, caption):
        pass

    def log_metrics(self, metrics, step):
        (table,) = [value for key, value in metrics.items() if key.endswith("/table")]
        self.columns, self.rows = table.columns, [list(row) for row in table.data]


def test_the_table_has_a_column_of_it(tmp_path):
    pytest.importorskip("wandb")
    snapshot, recorder = longer(), Recorder()
    WandbSink(recorder, tmp_path, "mine").log_snapshot(snapshot, History(PROBE, (snapshot,)), draw(snapshot, PROBE))
    rows = [dict(zip(recorder.columns, row, strict=True)) for row in recorder.rows]
    assert [row["peaks"] for row in rows] == [7, 0, 2]
    assert [row["entropy"] for row in rows] == [0.25, 1.5, None]


def test_every_tensor_but_the_map_is_declared():
    tensors = {one.name for one in fields(Snapshot) if str(one.type).startswith("Tensor")}
    assert tensors - {"attribution"} == set(Snapshot.values_per_image())
    assert {"drift_previous", "drift_reference", "noise_floor"} == {
        name for name, value in Snapshot.values_per_image().items() if value.optional
    }


def test_keys_on_the_page_are_distinct():
    keys = [value.page for value in Snapshot.values_per_image().values() if value.page is not None]
    assert len(set(keys)) == len(keys)
