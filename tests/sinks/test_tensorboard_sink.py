"""Event files, read back with TensorBoard's own reader."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from egcam_lightning.sinks import find_sinks

pytest.importorskip("tensorboard")


def test_every_sheet_is_read_back_at_its_step(tmp_path, log_all, history, drawn):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    (sink,) = find_sinks([logger], tmp_path, "mine")
    log_all(sink)
    sink.log_page(tmp_path / "report.html")
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir, {"images": 0})
    events.Reload()
    assert events.Tags()["images"] == ["mine/panels"]
    images = events.Images("mine/panels")
    assert [image.step for image in images] == [snapshot.step for snapshot in history.snapshots]
    for image, pictures in zip(images, drawn, strict=True):
        assert np.array_equal(np.asarray(Image.open(BytesIO(image.encoded_image_string))), pictures.sheet())
