"""Drift and its floor on networks that learn to see: silent where nothing changed, and loud where something did."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

from egcam_lightning import ExpectedGradCAM, Explanation
from egcam_lightning.metrics.functional import noise_floor, rank_drift, significant
from tests.support.fits import make_callback, make_trainer

EXAMPLES = str(Path(__file__).parents[1] / "examples")
NUM_BASELINES = 32


@pytest.fixture(scope="module")
def study() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield importlib.import_module("study")


@dataclass(frozen=True)
class Lesson:
    """The digits, and a network before training, after an epoch, and after three."""

    images: Tensor
    pool: Tensor
    target: Tensor
    stages: dict[str, nn.Module]
    layers: dict[str, str]

    def explain(self, stage: str, depth: str, baselines: Tensor) -> Explanation:
        explainer = ExpectedGradCAM(self.stages[stage], self.layers[depth], num_samples=NUM_BASELINES)
        return explainer(self.images, baselines, self.target)


@pytest.fixture(scope="module")
def data(study: ModuleType) -> tuple:
    digits = importlib.import_module("digits")  # beside `study`, which makes it importable
    return digits.DigitsOnTexture("train"), digits.DigitsOnTexture("val")


@pytest.fixture(scope="module", params=["VGG", "ResNet"])
def lesson(request: pytest.FixtureRequest, study: ModuleType, data: tuple) -> Lesson:
    train, val = data
    architecture = getattr(study, request.param)
    inputs = study.normalised(train.images)
    stages = {}
    for stage, epochs in (("untrained", 0), ("an epoch", 1), ("trained", 3)):
        model = study.seeded(architecture, 0).eval()
        stages[stage] = study.fit(model, inputs, train.labels, epochs=epochs, seed=0) if epochs else model
    images = study.normalised(val.images[:32])
    return Lesson(images, inputs, val.labels[:32], stages, dict(architecture.layers))


def beyond_their_floor(first: Explanation, second: Explanation) -> float:
    floors = [noise_floor(e.draws, e.baseline_index) for e in (first, second)]
    return float(significant(rank_drift(first.attribution, second.attribution), *floors).float().mean())


@pytest.mark.parametrize("depth", ["last", "earlier"])
def test_baselines_drawn_anew_make_at_most_one_image_in_twenty_significant(lesson, depth):
    rows = torch.randperm(len(lesson.pool), generator=torch.Generator().manual_seed(0)).split(NUM_BASELINES)[:5]
    found = [lesson.explain("trained", depth, lesson.pool[part]) for part in rows]
    pairs = list(pairwise(found))
    moved = [float(rank_drift(a.attribution, b.attribution).mean()) for a, b in pairs]
    assert min(moved) > 0.001  # there is noise to be told from drift
    assert sum(beyond_their_floor(a, b) for a, b in pairs) / len(pairs) <= 0.05


@pytest.mark.parametrize("depth", ["last", "earlier"])
def test_an_epoch_of_training_makes_nine_images_in_ten_significant(lesson, depth):
    baselines = lesson.pool[:NUM_BASELINES]
    before, after = (lesson.explain(stage, depth, baselines) for stage in ("untrained", "an epoch"))
    assert beyond_their_floor(before, after) >= 0.9


class Frozen(LightningModule):
    """A network that trains without learning: its BatchNorm never moves, and its learning rate is the test's."""

    def __init__(self, network: nn.Module, lr: float) -> None:
        super().__init__()
        self.network, self.lr = network, lr

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def on_train_batch_start(self, batch, batch_idx):
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()

    def training_step(self, batch, _):
        return cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)


def snapshots_of(network: nn.Module, lr: float, tmp_path: Path) -> list:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(32, 3, 64, 64, generator=generator), torch.arange(32) % 10
    loader = DataLoader(TensorDataset(images, labels), 8)
    callback = make_callback(num_images=6, num_baselines=8, num_samples=8, save_dir=str(tmp_path))
    make_trainer(tmp_path, callback, max_epochs=3, logger=False).fit(Frozen(network, lr), loader, loader)
    return [snapshot for snapshot in callback.history.snapshots if snapshot.when == "epoch"]


@pytest.mark.parametrize("name", ["resnet18", "VGG"])
def test_a_frozen_model_has_no_drift_at_all(name, study, tmp_path):
    network = study.seeded(lambda: resnet18(num_classes=10) if name == "resnet18" else study.VGG(), 0)
    first, *later = snapshots_of(network, 0.0, tmp_path)
    assert len(later) == 2
    for snapshot in later:
        assert snapshot.metrics["drift/previous"] == 0
        assert snapshot.metrics["drift/reference"] == 0
        assert snapshot.metrics["drift/significant"] == 0
        assert snapshot.metrics["drift/noise_floor"] > 0  # the floor is there, so 0 is not for want of one
        assert torch.equal(snapshot.attribution, first.attribution)


def test_the_same_fit_with_a_learning_rate_drifts(study, tmp_path):
    _, *later = snapshots_of(study.seeded(study.VGG, 0), 0.1, tmp_path)
    assert len(later) == 2
    assert all(snapshot.metrics["drift/previous"] > 0 for snapshot in later)
