"""Precisions that are coarser than a tensor's type says, and gradients that are smaller than its type holds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from egcam_lightning.explain import ExpectedGradCAM
from egcam_lightning.explain.gradient import gradient_at
from egcam_lightning.explain.precision import resolution
from egcam_lightning.explain.split_model import SplitModel, host_image_like
from tests.support.maps import pooled_gap
from tests.support.networks import CLASSES, VGG, ResNet, UNet, seeded
from tests.support.pictures import images


@pytest.fixture
def tf32() -> Iterator[None]:
    """What a user writes for TF32."""
    if not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("Before torch 2.9 nothing on a CPU is computed in TF32.")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


def rounded(x: Tensor) -> Tensor:
    """Float32 with ten bits of mantissa, rounded in another way for each number of rows, as by other kernels."""
    jitter = torch.randint(0, 1 << 13, x.shape, generator=torch.Generator().manual_seed(len(x)), dtype=torch.int32)
    return ((x.view(torch.int32) + jitter) & ~((1 << 13) - 1)).view(torch.float32)


def emulate_tf32(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(lambda _module, _inputs, output: rounded(output))
    return model


@pytest.mark.parametrize(
    ("architecture", "layer", "cut"),
    [
        *((VGG, f"features.{i}", True) for i in (1, 4, 7)),
        *((ResNet, layer, True) for layer in ("layer1", "layer2")),
        *((ResNet, f"layer2.1.{part}", False) for part in ("conv1", "bn2", "shortcut")),
        *((UNet, layer, False) for layer in ("bottom", "up")),
    ],
)
@pytest.mark.usefixtures("tf32")
def test_cuts_hold_in_tf32_and_what_something_bypasses_does_not(architecture: type, layer: str, cut: bool) -> None:
    model = emulate_tf32(seeded(architecture))
    candidate = SplitModel(model.get_submodule(layer), layer, model)
    # Of more contrast than the toys are made for: their logits vary as those of a trained network do.
    inputs = images(4) * torch.tensor([0.2, 1.0, 2.0, 3.0]).view(-1, 1, 1, 1)
    activation, output = candidate.capture(inputs)
    host_image = host_image_like(inputs)

    def replay() -> Tensor:  # in another number of rows than the images
        return torch.cat([candidate.from_points(part, host_image)[1] for part in activation.split(3)])

    assert candidate.holds(activation, output, host_image, replay) is cut


@pytest.mark.usefixtures("tf32")
@pytest.mark.cpu("the switches of CUDA have a test of their own")
def test_the_resolution_of_float32_follows_the_switches_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    half, bfloat, single = (torch.finfo(dtype).eps for dtype in (torch.float16, torch.bfloat16, torch.float32))
    values = torch.ones(1)
    assert resolution(values) == half
    torch.set_float32_matmul_precision("medium")
    assert resolution(values) == bfloat
    torch.set_float32_matmul_precision("highest")
    assert resolution(values) == single
    with torch.autocast("cpu", torch.bfloat16):
        assert resolution(values) == bfloat
    assert resolution(values, values.half()) == half


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), torch.float32), ((8, 0), torch.float16)])
def test_convolutions_on_a_device_that_has_tf32_use_it_unless_told_otherwise(
    capability: tuple[int, int], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OnDevice:
        dtype, device = torch.float32, torch.device("cuda")

        @staticmethod
        def is_floating_point() -> bool:
            return True

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    assert resolution(OnDevice()) == torch.finfo(expected).eps
    with torch.backends.cudnn.flags(allow_tf32=False):
        assert resolution(OnDevice()) == torch.finfo(torch.float32).eps


class Large(nn.Module):
    """A mean over a large grid, behind a part that is not linear; in half precision, if asked for."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        convolution = nn.Conv2d if dimensions == 2 else nn.Conv3d
        self.features = nn.Sequential(convolution(1, 2, 1), nn.ReLU())
        self.bend = nn.Tanh()
        self.fc = nn.Linear(2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.bend(self.features(x.to(self.fc.weight.dtype))).flatten(2).mean(2))


@pytest.mark.parametrize("size", [(512, 512), (64, 64, 64)], ids=str)
@pytest.mark.parametrize("autocast", [True, False])
def test_gradients_do_not_vanish_in_half_precision(size: tuple[int, ...], autocast: bool) -> None:
    def build() -> nn.Module:
        return Large(len(size))

    generator = torch.Generator().manual_seed(0)
    inputs, baselines = (torch.rand(2, 1, *size, generator=generator) * scale for scale in (2.0, 0.5))

    def gap(model: nn.Module) -> float:
        return pooled_gap(ExpectedGradCAM(model, "features", num_samples=8)(inputs, baselines, 1))

    if autocast:
        with torch.autocast("cpu", torch.float16):
            half = gap(seeded(build))
    else:
        half = gap(seeded(build).half())
    assert half < gap(seeded(build)) + 1e-3  # to which float16 rounds the scores themselves


def test_scores_are_not_scaled_where_nothing_is_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    clipped: list[float] = []
    leaf = torch.ones(3, requires_grad=True)
    watched = leaf * 1
    watched.register_hook(lambda gradient: clipped.append(float(gradient.max())))
    assert gradient_at(leaf, watched.tanh().bfloat16().float()) is not None
    assert clipped[0] <= 1


def test_a_gradient_that_is_too_large_when_scaled_is_had_without() -> None:
    leaf = torch.ones(3, requires_grad=True)
    for factor in (1.0, 100.0, 3000.0, 60000.0):
        gradient = gradient_at(leaf, (leaf.half() * factor).float())
        assert gradient is not None
        torch.testing.assert_close(gradient, torch.full((3,), factor), rtol=1e-3, atol=0)
    assert gradient_at(leaf, (leaf.half() * torch.nan).float()).isnan().all()
    assert gradient_at(leaf, torch.ones(3)) is None


def test_baselines_that_are_kept_in_half_precision_are_taken_as_they_are() -> None:
    explainer, inputs, kept = ExpectedGradCAM(seeded(VGG), "features.4"), images(2), images(4, seed=1).half()
    found, expected = explainer(inputs, kept, 1), explainer(inputs, kept.float(), 1)
    assert torch.equal(found.attribution, expected.attribution)
    assert found.attribution.dtype == torch.float32
