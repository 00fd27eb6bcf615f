"""A real offline run, read back from the disk; nothing of W&B is replaced."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from egcam_lightning.pictures.draw import HEAT_LEVELS
from egcam_lightning.sinks import find_sinks
from egcam_lightning.sinks.wandb import COLUMNS, WandbSink
from tests.support.wandb_reader import finished_records, history_rows

pytest.importorskip("wandb")


@pytest.fixture(scope="module")
def run(tmp_path_factory, log_all):
    """The records and the media folder of a run that got all snapshots, a number, the page and an alert."""
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    root = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        for name in ("DIR", "DATA_DIR", "CACHE_DIR", "CONFIG_DIR", "ARTIFACT_DIR"):
            patch.setenv(f"WANDB_{name}", str(root))
        logger = WandbLogger(save_dir=str(root), project="test")
        (sink,) = find_sinks([logger], root, "mine")
        logger.log_metrics({"mine/complexity": 1.0}, step=19)
        log_all(sink)
        page = root / "report.html"
        page.write_text("<!doctype html><title>timeline</title>")
        sink.log_page(page)
        sink.alert("drift", "0.9 is above 0.5")
        kept = sink._table.data
        folder = Path(logger.experiment.dir)
        wandb.finish()
        return {"records": finished_records(folder), "files": folder, "kept": kept}


@pytest.fixture(scope="module")
def rows(run):
    """The history rows, each a dictionary."""
    return history_rows(run["records"])


def with_key(rows, key):
    return [row for row in rows if key in row]


def test_a_snapshot_is_one_row_of_panels_at_its_step(rows, history):
    panels = with_key(rows, "mine/panels")
    assert [row["trainer/global_step"] for row in panels] == [s.step for s in history.snapshots]
    assert [row["mine/panels"]["count"] for row in panels] == [3, 3, 3]


def test_the_x_axis_is_the_one_that_lightning_uses(rows, run):
    (scalar,) = with_key(rows, "mine/complexity")
    (last,) = [row for row in with_key(rows, "mine/panels") if row["trainer/global_step"] == 19]
    assert scalar["trainer/global_step"] == last["trainer/global_step"]
    steps = [row["_step"] for row in rows]
    assert steps == list(range(len(rows)))


@pytest.mark.parametrize("key", ["mine/panels", "mine/overlays"])
def test_captions_are_those_of_the_pictures(rows, drawn, key):
    for row, pictures in zip(with_key(rows, key), drawn, strict=True):
        assert row[key]["captions"] == pictures.captions


def test_panels_on_disk_decode_to_what_was_drawn(rows, run, drawn):
    for row, pictures in zip(with_key(rows, "mine/panels"), drawn, strict=True):
        for name, expected in zip(row["mine/panels"]["filenames"], pictures.panels, strict=True):
            with Image.open(run["files"] / name) as image:
                assert np.array_equal(np.asarray(image.convert("RGB")), expected)


def test_overlays_on_disk_decode_to_the_pictures(rows, run, drawn):
    for row, pictures in zip(with_key(rows, "mine/overlays"), drawn, strict=True):
        for name, expected in zip(row["mine/overlays"]["filenames"], pictures.pictures, strict=True):
            with Image.open(run["files"] / name) as image:
                decoded = np.asarray(image.convert("RGB")).astype(float)
            assert decoded.shape == expected.shape
            # JPEG keeps the brightness of noise, the fixture's pictures, far better than its colours.
            assert np.corrcoef(decoded.mean(2).flat, expected.mean(2).flat)[0, 1] > 0.9


def test_masks_decode_to_the_heat_levels_and_the_object(rows, run, drawn):
    for row, pictures in zip(with_key(rows, "mine/overlays"), drawn, strict=True):
        for kind, expected in [("heat", pictures.levels), ("object", pictures.objects)]:
            for i in range(3):
                mask = row["mine/overlays"]["all_masks"][i][kind]
                with Image.open(run["files"] / mask["path"]) as image:
                    assert np.array_equal(np.asarray(image), expected[i])


def test_the_table_has_a_row_an_image_and_snapshot(rows, run, history):
    tables = [row["mine/table"] for row in with_key(rows, "mine/table")]
    assert [table["increment_num"] for table in tables] == [0, 1, 2]
    assert [table["nrows"] for table in tables] == [3, 6, 9]
    for table, snapshot in zip(tables, history.snapshots, strict=True):
        content = json.loads((run["files"] / table["path"]).read_text())
        assert tuple(content["columns"]) == COLUMNS
        data = [dict(zip(COLUMNS, row, strict=True)) for row in content["data"]]
        assert [row["image"] for row in data] == [0, 1, 2]
        assert [row["explained"] for row in data] == ["cat", "dog", "<b>bird</b>"]
        assert [row["predicted"] for row in data] == ["cat", "<b>bird</b>", "<b>bird</b>"]
        assert [row["correct"] for row in data] == [True, False, True]
        assert [row["baseline_score"] for row in data] == [0.5, None, 0.25]
        assert [row["score"] for row in data] == pytest.approx(snapshot.score.tolist())
        drift = [None] * 3 if snapshot.drift_previous is None else pytest.approx(snapshot.drift_previous.tolist())
        assert [row["drift_previous"] for row in data] == drift
        assert {row["step"] for row in data} == {snapshot.step}


def test_the_pictures_of_the_table_decode(run, drawn):
    artifacts = [record.artifact for record in run["records"] if record.HasField("artifact")]
    assert len(artifacts) == len(drawn)
    for artifact, pictures in zip(artifacts, drawn, strict=True):
        files = {entry.path: entry.local_path for entry in artifact.manifest.contents}
        (table,) = [json.loads(Path(files[path]).read_text()) for path in files if path.endswith(".table.json")]
        for row, expected in zip(table["data"], pictures.blended, strict=True):
            shown = dict(zip(table["columns"], row, strict=True))
            with Image.open(files[shown["overlay"]["path"]]) as image:
                assert np.asarray(image.convert("RGB")).shape == expected.shape
            assert shown["picture"]["path"] != shown["overlay"]["path"]


def test_the_table_keeps_no_picture_in_memory(run):
    assert len(run["kept"]) == 9
    assert not any(run["kept"])


def test_the_page_is_there_at_the_last_step(rows, run):
    (row,) = with_key(rows, "mine/timeline")
    assert row["trainer/global_step"] == 19
    assert "timeline" in (run["files"] / row["mine/timeline"]["path"]).read_text()


def test_the_alert_is_there(run):
    (alert,) = [record.alert for record in run["records"] if record.HasField("alert")]
    assert (alert.title, alert.text) == ("drift", "0.9 is above 0.5")


class Recorder:
    """Stands where W&B cannot be asked: counts the calls beyond the cap."""

    def __init__(self):
        self.calls = []

    def log_image(self, key, images, step, caption):
        self.calls.append((key, len(images)))

    def log_metrics(self, metrics, step):
        self.calls.extend(metrics)


def test_pictures_are_capped_with_one_warning(history, drawn, log_all, monkeypatch, tmp_path):
    monkeypatch.setattr(WandbSink, "max_pictures", 4 * 3)
    recorder = Recorder()
    with pytest.warns(UserWarning, match=r"12 pictures are the most .* 1 snapshots") as caught:
        log_all(WandbSink(recorder, tmp_path, "mine"))
    assert len(caught) == 1
    assert recorder.calls == [("mine/panels", 3), "mine/overlays", "mine/table"]


def test_no_call_has_more_images_than_a_list_holds(history, drawn, log_all, monkeypatch, tmp_path):
    monkeypatch.setattr("egcam_lightning.sinks.wandb._MOST", 2)
    recorder = Recorder()
    with pytest.warns(UserWarning, match=r"2 images at most .* first 2 of the 3 .* write num_images=2 or") as caught:
        log_all(WandbSink(recorder, tmp_path, "mine"))
    assert len(caught) == 1
    assert recorder.calls[0] == ("mine/panels", 2)


def test_every_heat_level_is_named(drawn):
    seen = {int(level) for pictures in drawn for levels in pictures.levels for level in np.unique(levels)}
    assert seen == {0, *HEAT_LEVELS}
