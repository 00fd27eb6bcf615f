"""Volumes and videos: maps over all three axes, in place along each of them, and a callback that takes them."""

from __future__ import annotations

import math
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchmetrics.functional.regression import spearman_corrcoef

import egcam_lightning.pictures.pixels
from egcam_lightning import ExpectedGradCAM, ExpectedGradCAMCallback, History
from egcam_lightning.pictures.draw import draw
from egcam_lightning.report.payload import build_payload
from tests.support.fits import make_callback, make_trainer

SIZE = (16, 24, 32)


def network(width: int = 8) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv3d(1, width, 3, 2, 1), nn.BatchNorm3d(width), nn.ReLU(inplace=True)),
        *(nn.Conv3d(width, width, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(width, 2)),
    )


def octant(index: int) -> tuple[slice, ...]:
    """The middle of one of the eight parts of a volume."""
    steps = (index // 4, index // 2 % 2, index % 2)
    return tuple(
        slice(s // 8 + s // 2 * step, s // 8 + s // 2 * step + s // 4) for s, step in zip(SIZE, steps, strict=True)
    )


def shares(maps: Tensor) -> Tensor:
    """``(B, 8)``: the share of the absolute attribution in each part."""
    parts = maps.abs().unflatten(3, (2, -1)).unflatten(2, (2, -1)).unflatten(1, (2, -1)).sum((2, 4, 6)).flatten(1)
    return parts / parts.sum(1, keepdim=True)


def in_place(maps: Tensor) -> bool:
    """As for images, though a uniform map has half as much in each part."""
    found, right = shares(maps), torch.arange(8)
    return bool(found.gather(1, right[:, None]).mean() >= 0.3 and (found.argmax(1) == right).float().mean() >= 0.75)


def test_maps_of_volumes_are_in_place_along_every_axis() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 1, *SIZE, generator=generator)
    volumes = noise.repeat(8, 1, 1, 1, 1)
    for index, volume in enumerate(volumes):
        volume[(slice(None), *octant(index))] = 3.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = network().eval()
    explainer = ExpectedGradCAM(model, num_samples=8)
    explanation = explainer(volumes, noise, 1)
    assert explanation.layer == "4"
    assert explainer.grid == (8, 12, 16)
    assert explanation.attribution.shape == (8, 8, 12, 16)
    assert explanation.heatmap.shape == (8, *SIZE)
    assert explanation.completeness_gap.max() < 0.01
    assert in_place(explanation.attribution)
    for axis in (1, 2, 3):
        assert not in_place(explanation.attribution.flip(axis))


QUARTER = SIZE[0] // 4


class Blobs(Dataset):
    """Noise with a bright blob, whose depth determines the class: in the front half or in the back half."""

    classes = ("front", "back")

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.quarters = torch.randint(0, 4, (count,), generator=generator)
        corners = torch.randint(0, 4, (count,), generator=generator)
        self.volumes = 0.3 * torch.randn(count, 1, *SIZE, generator=generator)
        self.masks = torch.zeros(count, *SIZE, dtype=torch.bool)
        for volume, mask, quarter, corner in zip(
            self.volumes, self.masks, self.quarters.tolist(), corners.tolist(), strict=True
        ):
            _, rows, columns = octant(corner)
            blob = slice(QUARTER * quarter, QUARTER * (quarter + 1)), rows, columns
            volume[(0, *blob)] += 2
            mask[blob] = True

    def __len__(self) -> int:
        return len(self.quarters)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.volumes[index], "label": self.quarters[index] // 2, "mask": self.masks[index]}


class Net(LightningModule):
    """A network of its own, because it takes volumes."""

    def __init__(self) -> None:
        super().__init__()
        # The depth is kept until the last layer, which alone can tell the classes apart.
        self.net = nn.Sequential(
            *(nn.Conv3d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv3d(8, 8, 3, padding=1), nn.ReLU()),
            *(nn.AdaptiveAvgPool3d((8, 1, 1)), nn.Flatten(), nn.Linear(64, 2)),
        )

    def forward(self, volumes: Tensor) -> Tensor:
        return self.net(volumes)

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        return cross_entropy(self(batch["image"]), batch["label"])

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def fit(root: Path, epochs: int, **options: Any) -> ExpectedGradCAMCallback:
    callback = make_callback(num_images=8, num_samples=8, num_baselines=8, masks_key="mask", metrics="default")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers")
        torch.manual_seed(0)
        trainer = make_trainer(root, callback, max_epochs=epochs, **options)
        resume = root / "last.ckpt"
        data = DataLoader(Blobs(64, 0), 8), DataLoader(Blobs(16, 1), 8)
        trainer.fit(Net(), *data, ckpt_path=resume if resume.exists() else None)
        trainer.save_checkpoint(resume)
    return callback


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ExpectedGradCAMCallback:
    return fit(tmp_path_factory.mktemp("run"), 4, logger=False)


@pytest.fixture(scope="module")
def probed() -> Blobs:
    """What the probe is of: every other validation volume."""
    data = Blobs(16, 1)
    data.volumes, data.masks, data.quarters = data.volumes[::2], data.masks[::2], data.quarters[::2]
    return data


def test_the_callback_keeps_and_measures_maps_over_all_axes(run, probed):
    last = run.history[-1]
    assert [s.when for s in run.history] == ["start", "epoch", "epoch", "epoch", "epoch"]
    assert last.attribution.shape == (8, 8, 12, 16)
    torch.testing.assert_close(
        last.attribution.flatten(1).sum(1), last.score - last.baseline_score, rtol=0.05, atol=0.02
    )
    assert all(math.isfinite(value) for value in last.metrics.values())
    assert {"infidelity", "insertion_auc", "consensus", "recurrence", "drift/previous", "drift/ssim"} <= set(
        last.metrics
    )
    # By hand, over all three axes: no projection has these values.
    before = run.history[-2].attribution
    correlation = [spearman_corrcoef(a, b) for a, b in zip(last.attribution.flatten(1), before.flatten(1), strict=True)]
    torch.testing.assert_close(last.drift_previous, 1 - torch.stack(correlation), rtol=0, atol=1e-5)
    # A blob fills 1/64 of a volume.
    assert last.metrics["relevance_mass"] > 8 / 64
    assert last.metrics["pointing_game"] == 1.0


def test_the_history_gives_volumes_and_their_maps_back(run, probed):
    history = History.load(run.run_dir)
    assert len(history) == len(run.history)
    for a, b in zip(history.snapshots, run.history.snapshots, strict=True):
        assert torch.equal(a.attribution, b.attribution)
    assert history.probe.images.shape == (8, *SIZE, 3)
    assert torch.equal(history.probe.masks, probed.masks.cpu())


def test_the_slice_that_is_shown_holds_the_blob_with_the_heat_on_it(run, probed):
    history = run.history
    pictures = draw(history[-1], history.probe)
    sheet = run.run_dir / "panels" / f"{history[-1].name}.png"
    assert np.array_equal(np.asarray(Image.open(sheet)), pictures.sheet())
    (page,) = build_payload([history], ["run"])["runs"]
    for image, quarter in enumerate(probed.quarters.tolist()):
        shown = pictures.slices[image] - 1
        assert quarter * QUARTER <= shown < (quarter + 1) * QUARTER
        assert f"slice {shown + 1} of {SIZE[0]}" in pictures.captions[image]
        assert page["snapshots"][-1]["slices"][image] == shown
        assert list(page["images"][image]) == sorted({row["slices"][image] for row in page["snapshots"]})
        blob = pictures.objects[image].astype(bool)
        assert 0 < blob.mean() < 0.1
        # The blob is bright where the mask is, and hottest there.
        assert pictures.pictures[image][blob].mean() > 2 * pictures.pictures[image][~blob].mean()
        assert blob[pictures.levels[image] == 3].mean() > 0.9
    assert len({tuple(row["slices"]) for row in page["snapshots"]}) > 1
    assert (run.run_dir / "report.html").is_file()


def test_a_resumed_run_goes_on_from_its_maps_over_all_axes(tmp_path, run):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    root = tmp_path / "resumed"
    root.mkdir()
    fit(root, 2, logger=TensorBoardLogger(root, version="one"))
    resumed = fit(root, 4, logger=TensorBoardLogger(root, version="two"))
    assert [s.key for s in resumed.history] == [s.key for s in run.history]
    assert resumed.history[-1].metrics["drift/reference"] == run.history[-1].metrics["drift/reference"]
    events = accumulator.EventAccumulator(str(root / "lightning_logs" / "two"), {"images": 0})
    events.Reload()
    sheets = [np.asarray(Image.open(BytesIO(i.encoded_image_string))) for i in events.Images("egcam/panels")]
    assert np.array_equal(sheets[-1], draw(resumed.history[-1], resumed.history.probe).sheet())


def test_volumes_too_large_to_be_shown_whole_are_measured_whole(tmp_path, run, monkeypatch):
    monkeypatch.setattr(egcam_lightning.pictures.pixels, "MAX_VOLUME_BYTES", 3 * 8 * SIZE[0] * 12 * 16)
    small = fit(tmp_path, 1, logger=False)
    first = run.history[1]
    assert small.history.probe.images.shape == (8, SIZE[0], 12, 16, 3)
    assert small.history.probe.masks.shape == (8, SIZE[0], 12, 16)
    # Blobs begin and end at whole pixels of the smaller picture along its columns, and at halves along its rows.
    masks = run.history.probe.masks[..., ::2]
    assert torch.equal(small.history.probe.masks, masks[:, :, ::2] | masks[:, :, 1::2])
    assert torch.equal(small.history[-1].attribution, first.attribution)
    assert small.history[-1].metrics["relevance_mass"] == first.metrics["relevance_mass"]
    assert draw(small.history[-1], small.history.probe).slices == draw(first, run.history.probe).slices
