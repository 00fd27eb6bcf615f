"""The host hardly ever waits for a device: not in the steps of training, and once a chunk at most in an explanation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from egcam_lightning import BaselineReservoir, ExpectedGradCAM, ExpectedGradCAMCallback, Perturbation
from egcam_lightning.explain.chunking import Chunks
from egcam_lightning.metrics.functional import class_scores, deletion_auc, infidelity, insertion_auc
from tests.support import devices
from tests.support.fits import fit
from tests.support.networks import VGG, Pooled, ResNet, ViT, seeded
from tests.support.pictures import images
from tests.support.waits import counted_waits


@pytest.fixture(
    params=["chosen", pytest.param("cuda", marks=pytest.mark.gpu)],
    ids=["the device chosen", "a GPU"],
)
def device(request: pytest.FixtureRequest) -> torch.device:
    """A device that can be waited for; without one these tests run in a process of their own."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
        return torch.device("cuda", 0)
    if devices.chosen().type not in ("cuda", "pretended"):
        pytest.skip("nobody waits for a CPU: see test_without_a_device.py")
    return devices.chosen()


class Halved(nn.Module):
    """A network in half precision, whose logits are float32."""

    def __init__(self, overflows: bool) -> None:
        super().__init__()
        self.model = seeded(VGG).half()
        self.overflows = overflows

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x.half()).float()
        return logits * 100 if self.overflows else logits


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many chunks of work there have been."""
    counter: Counter[str] = Counter()
    run = Chunks.run

    def counted(self: Chunks, total: int, size: int, work: Callable[[slice], None]) -> None:
        def one(chunk: slice) -> None:
            counter["chunks"] += 1
            work(chunk)

        run(self, total, size, one)

    monkeypatch.setattr(Chunks, "run", counted)
    return counter


CASES: dict[str, tuple[Callable[[], nn.Module], str, dict[str, Any]]] = {
    "paths between activations": (lambda: seeded(ResNet), "layer1", {}),
    "paths between images": (lambda: seeded(VGG), "features.4", {"perturbation": Perturbation.expected("input")}),
    "noise": (lambda: seeded(VGG), "features.4", {"perturbation": Perturbation.smooth_grad_cam()}),
    "a linear head": (lambda: seeded(Pooled), "features", {}),
    "tokens": (lambda: seeded(ViT), "blocks.0", {}),
    "half precision": (lambda: Halved(False), "model.features.4", {}),
    "half precision and noise": (
        lambda: Halved(False),
        "model.features.4",
        {"perturbation": Perturbation(space="input", noise=0.1)},
    ),
    "half precision that overflows": (lambda: Halved(True), "model.features.4", {}),
    "optimal weights": (lambda: seeded(VGG), "features.4", {"weighting": "optimal"}),
    "principal components": (lambda: seeded(VGG), "features.4", {"weighting": "eigen"}),
    "regions": (lambda: nn.Sequential(seeded(VGG).features, nn.Conv2d(16, 3, 1)), "0.4", {"score": "region"}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")
def test_an_explanation_waits_once_a_chunk_at_most(name: str, device: torch.device, chunks: Counter[str]) -> None:
    build, layer, arguments = CASES[name]
    model, inputs, baselines = build().to(device), images(4).to(device), images(4, seed=1).to(device)
    target = torch.arange(4).to(device) % 3

    def waits(chunk_size: int) -> tuple[int, int]:
        explainer = ExpectedGradCAM(model, layer, num_samples=16, chunk_size=chunk_size, **arguments)
        explainer.find(inputs)
        chunks.clear()
        with counted_waits(device) as counter:
            explainer(inputs, baselines, target)
        return sum(counter.values()), chunks["chunks"]

    (few, of_few), (many, of_many) = waits(16), waits(4)
    assert of_many > of_few
    assert many - few <= of_many - of_few
    assert few <= of_few + 15, "the rest is done once: the test of the layer, and what goes to the device and back"


@pytest.mark.parametrize("function", [insertion_auc, deletion_auc, infidelity])
def test_a_metric_waits_once_a_chunk_at_most(
    function: Callable[..., Tensor], device: torch.device, chunks: Counter[str]
) -> None:
    model, inputs, maps = seeded(VGG).to(device), images(4).to(device), torch.rand(4, 6, 8).to(device)
    target, score = torch.arange(4).to(device), class_scores(model, softmax=True)

    def waits(chunk_size: int) -> tuple[int, int]:
        chunks.clear()
        with torch.no_grad(), counted_waits(device) as counter:
            function(score, inputs, maps, target, chunk_size=chunk_size)
        return sum(counter.values()), chunks["chunks"]

    (few, of_few), (many, of_many) = waits(16), waits(4)
    assert of_many > of_few
    assert many - few <= of_many - of_few


@pytest.mark.filterwarnings("ignore:.*several sizes")
def test_training_images_that_pass_by_are_not_waited_for(device: torch.device) -> None:
    reservoir, batch = BaselineReservoir(4), torch.rand(8, 3, 16, 16).to(device)
    small = batch[..., ::2].contiguous()
    with counted_waits(device) as counter:
        for _ in range(50):
            reservoir.update(batch)
            reservoir.update(small)
    assert reservoir.seen == 800
    assert not counter


class Watched(ExpectedGradCAMCallback):
    """Counts what it waits for in the steps of training."""

    def __init__(self, device: torch.device, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.device = device
        self.steps = 0
        self.waits: Counter[str] = Counter()

    def on_train_batch_start(self, *args: Any) -> None:
        with counted_waits(self.device) as counter:
            super().on_train_batch_start(*args)
        self.waits += counter

    def on_train_batch_end(self, *args: Any) -> None:
        with counted_waits(self.device) as counter:
            super().on_train_batch_end(*args)
        self.steps += 1
        self.waits += counter


@pytest.mark.parametrize("baseline_samples", [None, 20])
@pytest.mark.filterwarnings("ignore")
def test_no_step_of_training_waits(tmp_path: Any, baseline_samples: int | None, device: torch.device) -> None:
    callback = Watched(
        device,
        **{"num_images": 4, "num_samples": 2, "num_baselines": 4, "metrics": (), "max_overhead": None},
        baseline_samples=baseline_samples,
        strict=True,
        log_prefix=f"egcam-{device.type}",
    )
    fit(tmp_path, callback, **({} if device == devices.chosen() else {"accelerator": "cuda", "devices": 1}))
    assert callback.steps == 8
    assert len(callback.history) == 3
    assert not callback.waits
