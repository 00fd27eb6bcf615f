"""Comet's real offline experiment, which needs no account, read back from the archive that it leaves."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from egcam_lightning.sinks import find_sinks

comet_ml = pytest.importorskip("comet_ml")


def test_every_sheet_and_the_page_are_in_the_archive(tmp_path, log_all, history, drawn, monkeypatch):
    from lightning.pytorch.loggers import CometLogger

    monkeypatch.setenv("COMET_LOGGING_CONSOLE", "ERROR")
    monkeypatch.chdir(tmp_path)
    logger = CometLogger(online=False, offline_directory=str(tmp_path), project="test")
    # The logger's own offline experiment is switched off by Lightning, and keeps nothing.
    logger._experiment = comet_ml.OfflineExperiment(
        offline_directory=str(tmp_path / "comet"),
        project_name="test",
        log_code=False,
        log_graph=False,
        log_env_details=False,
        auto_output_logging=False,
        display_summary_level=0,
    )
    (sink,) = find_sinks([logger], tmp_path, "mine")
    log_all(sink)
    page = tmp_path / "report.html"
    page.write_text("<!doctype html>timeline")
    sink.log_page(page)
    logger.experiment.end()

    (archive,) = (tmp_path / "comet").glob("*.zip")
    with zipfile.ZipFile(archive) as content:
        lines = [json.loads(line) for line in content.read("messages.json").decode().splitlines()]
        uploads = [line["payload"] for line in lines if line["type"] == "file_upload"]
        images = [upload for upload in uploads if upload["upload_type"] == "visualization"]
        for upload, snapshot, pictures in zip(images, history.snapshots, drawn, strict=True):
            assert upload["additional_params"]["figName"] == "mine/panels"
            assert upload["additional_params"]["step"] == snapshot.step
            with content.open(upload["file_path"]) as file:
                assert np.array_equal(np.asarray(Image.open(file)), pictures.sheet())
        (asset,) = [upload for upload in uploads if upload["upload_type"] == "asset"]
        assert asset["additional_params"]["fileName"] == "mine/timeline.html"
        assert content.read(asset["file_path"]) == page.read_bytes()
