"""Every logger shows of a volume the slice that its map speaks for most, and says which."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from egcam_lightning.history.history import History
from egcam_lightning.pictures.draw import draw
from egcam_lightning.sinks.files import FileSink
from egcam_lightning.sinks.wandb import COLUMNS, WandbSink
from tests.support.snapshots import make_probe, make_snapshot


@pytest.fixture
def volumes() -> History:
    """Two volumes of four slices, slice k of the grey value 50 k; the maps speak for slices 3 and 2 of them."""
    maps = torch.zeros(2, 4, 3, 3)
    maps[0, 2, 0, 0] = maps[1, 1, 2, 2] = 1
    greys = torch.arange(0, 200, 50, dtype=torch.uint8).view(1, -1, 1, 1, 1).expand(2, -1, 24, 24, 3)
    masks = torch.zeros(2, 4, 24, 24, dtype=torch.bool)
    masks[:, 2, :8, :8] = True
    return History(make_probe(2, images=greys, masks=masks), (make_snapshot(maps),), "mine")


def test_files_hold_the_sheet_of_the_slices(volumes, tmp_path):
    pictures = draw(volumes[0], volumes.probe)
    FileSink(None, tmp_path, "mine").log_snapshot(volumes[0], volumes, pictures)
    (path,) = (tmp_path / "panels").iterdir()
    with Image.open(path) as sheet:
        assert np.array_equal(np.asarray(sheet), pictures.sheet())
    assert [np.unique(picture).tolist() for picture in pictures.pictures] == [[100], [50]]


class Recorder:
    """Stands where a run would be: keeps what W&B's own objects hold when they are sent."""

    def log_image(self, key, images, step, caption):
        self.panels, self.captions = images, caption

    def log_metrics(self, metrics, step):
        self.overlays, table = metrics["mine/overlays"], metrics["mine/table"]
        self.rows = [dict(zip(table.columns, row, strict=True)) for row in table.data]


def test_panels_overlays_and_table_show_the_slice(volumes, tmp_path):
    pytest.importorskip("wandb")
    pictures, recorder = draw(volumes[0], volumes.probe), Recorder()
    WandbSink(recorder, tmp_path, "mine").log_snapshot(volumes[0], volumes, pictures)
    assert len(recorder.panels) == 2
    for index, shown in enumerate((3, 2)):
        said = f"slice {shown} of 4"
        assert said in recorder.captions[index]
        overlay, row = recorder.overlays[index], recorder.rows[index]
        assert said in overlay._caption
        assert list(row) == [*COLUMNS, "slice"]
        assert row["slice"] == shown
        for image in (overlay, row["picture"]):
            assert abs(np.asarray(image.image, float).mean() - 50 * (shown - 1)) < 2
        heat = np.asarray(Image.open(overlay._masks["heat"]._path))
        assert (heat[:32, :32].max(), heat[-32:, -32:].max()) == ((3, 0) if shown == 3 else (0, 3))
        # The object lies on the third slice only.
        assert np.asarray(Image.open(overlay._masks["object"]._path)).any() == (shown == 3)
