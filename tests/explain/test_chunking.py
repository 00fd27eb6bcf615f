"""Memory that runs out is known for what it is, and remembered where it did."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from egcam_lightning.explain import ExpectedGradCAM
from egcam_lightning.explain.chunking import Chunks, is_out_of_memory
from egcam_lightning.explain.split_model import SplitModel, host_image_like
from tests.support.maps import relative_error
from tests.support.networks import VGG, seeded
from tests.support.pictures import images

MESSAGES = [
    "CUDA out of memory. Tried to allocate 2.00 GiB",
    "CUDA error: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "cuFFT error: CUFFT_ALLOC_FAILED",
    "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    "Unable to find a valid cuDNN algorithm to run convolution",
    "FIND was unable to find an engine to execute this computation",
    "MPS backend out of memory (MPS allocated: 8.00 GB)",
    "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes",
    "DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes",
    "RESOURCE_EXHAUSTED: Failed to allocate request",
]


@pytest.mark.parametrize("message", MESSAGES)
def test_every_library_that_runs_out_of_memory_is_understood(message: str) -> None:
    assert is_out_of_memory(RuntimeError(message))
    assert not is_out_of_memory(ValueError(message))


def test_other_errors_are_not_taken_for_it() -> None:
    for message in ("CUDA error: device-side assert triggered", "shape '[2, 3]' is invalid for input of size 5"):
        assert not is_out_of_memory(RuntimeError(message))


MOST: dict[int, dict[str, int]] = {}  # beside the models: what they hold, isolation puts back


class Limited(nn.Module):
    """Runs out of memory on more than ``limit`` images, or points behind its features."""

    def __init__(self, images: int = 10**6, points: int = 10**6) -> None:
        super().__init__()
        self.model = seeded(VGG)
        self.images, self.points = images, points
        MOST[id(self)] = {"images": 0, "points": 0}

    @property
    def most(self) -> dict[str, int]:
        return MOST[id(self)]

    def forward(self, x: Tensor) -> Tensor:
        features = self.model.features(x)
        for kind, value, limit in (("images", x, self.images), ("points", features, self.points)):
            if len(value) > limit:
                raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
            self.most[kind] = max(self.most[kind], len(value))
        return self.model.classifier(self.model.avgpool(features).flatten(1))


def test_memory_that_images_ran_out_of_leaves_the_points_as_they_are() -> None:
    def explain(model: Limited) -> tuple[Limited, Tensor]:
        explainer = ExpectedGradCAM(model, "model.features.4", num_samples=8)
        explainer(images(9), images(8, seed=1), 1)
        model.most.update(images=0, points=0)  # the second time everything is known
        return model, explainer(images(9), images(8, seed=1), 1).draws

    whole, expected = explain(Limited())
    few_images, draws = explain(Limited(images=4))
    assert (few_images.most["images"], few_images.most["points"]) == (4, whole.most["points"])
    assert relative_error(draws, expected) < 1e-4
    few_points, draws = explain(Limited(points=12))
    assert few_points.most["points"] <= 12
    assert few_points.most["images"] == whole.most["images"] == 9
    assert relative_error(draws, expected) < 1e-4


def test_memory_that_runs_out_in_the_test_of_a_cut_is_no_answer() -> None:
    model = Limited()
    inputs = images(4)
    cut = SplitModel(model.model.features[4], "features.4", model)
    activation, output = cut.capture(inputs)
    model.points = 2
    with pytest.raises(RuntimeError, match="ALLOC_FAILED"):
        cut.holds(activation, output, host_image_like(inputs))


def test_the_size_that_was_asked_for_is_kept() -> None:
    chunks, seen = Chunks(3), []
    chunks.run(7, 100, lambda part: seen.append(part.stop - part.start))
    assert seen == [3, 3, 1]
    assert chunks.size == 3
