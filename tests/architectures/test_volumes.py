"""Volumes and videos: maps over all three axes, in place along each of them, and a callback that takes them."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from egcam_lightning import ExpectedGradCAM, ExpectedGradCAMCallback, History

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


class Volumes(Dataset):
    """Noise with a bright or a dark box in one of eight places."""

    classes = ("dark", "bright")

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(0, 2, (count,), generator=generator)
        self.places = torch.randint(0, 8, (count,), generator=generator)
        self.volumes = 0.3 * torch.randn(count, 1, *SIZE, generator=generator)
        self.masks = torch.zeros(count, *SIZE)
        for volume, mask, label, place in zip(
            self.volumes, self.masks, self.labels.tolist(), self.places.tolist(), strict=True
        ):
            volume[(slice(None), *octant(place))] += 4 * label - 2
            mask[octant(place)] = 1

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.volumes[index], "label": self.labels[index], "mask": self.masks[index]}


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, volumes: Tensor) -> Tensor:
        return self.net(volumes)

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        return cross_entropy(self(batch["image"]), batch["label"])

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_the_callback_explains_volumes_measures_them_whole_and_shows_their_projection(tmp_path) -> None:
    callback = ExpectedGradCAMCallback(
        num_images=8, num_samples=8, num_baselines=8, masks_key="mask", max_overhead=None, strict=True
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trainer = Trainer(
            max_epochs=3, accelerator="cpu", callbacks=[callback], default_root_dir=tmp_path, logger=False,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        )  # fmt: skip
        data = Volumes(16, 1)
        trainer.fit(Net(), DataLoader(Volumes(64, 0), 16), DataLoader(data, 8))
    last = callback.history[-1]
    assert [s.when for s in callback.history] == ["start", "epoch", "epoch", "epoch"]
    assert last.attribution.shape == (8, 12, 16)
    assert callback.history.probe.images.shape == (8, *SIZE[1:], 3)
    assert torch.equal(callback.history.probe.masks, data.masks[::2].any(1))
    # The sum over depth is as complete as the map itself.
    torch.testing.assert_close(
        last.attribution.flatten(1).sum(1), last.score - last.baseline_score, rtol=0.05, atol=0.02
    )
    assert all(math.isfinite(value) for value in last.metrics.values())
    assert {"infidelity", "insertion_auc", "relevance_mass", "drift/previous", "drift/ssim"} <= set(last.metrics)
    # Measured over all three axes: a box fills 1/64 of a volume, and 1/16 of its projection.
    assert last.metrics["relevance_mass"] > 4 / 64
    assert torch.equal(History.load(callback.run_dir)[-1].attribution, last.attribution)
    assert (callback.run_dir / "report.html").is_file()
