"""A real run in an SQLite store, read back through MLflow's own client."""

from __future__ import annotations

import numpy as np
import pytest
from lightning.pytorch.loggers import MLFlowLogger
from PIL import Image

from egcam_lightning.sinks import find_sinks

pytest.importorskip("mlflow")


def test_every_sheet_and_the_page_are_read_back(tmp_path, log_all, history, drawn, monkeypatch):
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    logger = MLFlowLogger("test", tracking_uri=uri, artifact_location=(tmp_path / "artifacts").as_uri())
    (sink,) = find_sinks([logger], tmp_path, "mine")
    log_all(sink)
    page = tmp_path / "report.html"
    page.write_text("<!doctype html>")
    sink.log_page(page)

    from mlflow import MlflowClient

    client = MlflowClient(uri)
    (run,) = client.search_runs([logger.experiment_id])
    names = [file.path for file in client.list_artifacts(run.info.run_id, "images") if file.path.endswith(".png")]
    # key, "step", step, "timestamp", time and an identifier, joined by plus signs
    steps = {int(name.split("+")[2]): name for name in names}
    assert all("mine~panels" in name for name in names)
    assert sorted(steps) == [snapshot.step for snapshot in history.snapshots]
    for snapshot, pictures in zip(history.snapshots, drawn, strict=True):
        file = client.download_artifacts(run.info.run_id, steps[snapshot.step])
        assert np.array_equal(np.asarray(Image.open(file)), pictures.sheet())
    assert [file.path for file in client.list_artifacts(run.info.run_id, "mine")] == ["mine/report.html"]
