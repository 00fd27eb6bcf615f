"""What is tried on a model may be refused in any way, and ends nothing; what could not be caught is not tried."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from egcam_lightning.explain import ExpectedGradCAM, Perturbation
from egcam_lightning.explain.split_model import smaller
from tests.support.maps import relative_error
from tests.support.networks import VGG, seeded
from tests.support.pictures import images

SIZE = (48, 64)
pytestmark = pytest.mark.usefixtures("no_warnings")


class OwnError(Exception):
    """A model's own."""


class Particular(nn.Module):
    """Refuses what it does not like, in a way of its own."""

    def __init__(self, accepts: Callable[[Tensor], bool], error: BaseException) -> None:
        super().__init__()
        self.model = seeded(VGG)
        self.accepts, self.error = accepts, error

    def forward(self, x: Tensor) -> Tensor:
        if not self.accepts(x):
            raise self.error
        return self.model(x)


ERRORS = [OwnError("no such size"), KeyError((32, 32)), NotImplementedError("size"), StopIteration(), OSError("size")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_a_size_that_the_model_refuses_costs_only_the_smaller_carrier(error: Exception) -> None:
    def explain(accepts: Callable[[Tensor], bool]) -> Tensor:
        explainer = ExpectedGradCAM(Particular(accepts, error), "model.features.4", num_samples=4)
        return explainer(images(3, size=SIZE), images(4, seed=1, size=SIZE), 1).draws

    assert relative_error(explain(lambda x: x.shape[2:] == SIZE), explain(lambda x: True)) < 1e-5


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_a_memory_format_that_the_model_refuses_costs_only_the_format(error: Exception) -> None:
    explainer = ExpectedGradCAM(Particular(Tensor.is_contiguous, error), "model.features.4", num_samples=4)
    assert explainer(images(3), images(4, seed=1), 1).draws.isfinite().all()


@pytest.mark.cpu("that is what it is about")
def test_a_smaller_carrier_is_tried_on_a_cpu_alone() -> None:
    assert [tuple(c.shape[2:]) for c in smaller(torch.rand(1, 3, *SIZE))] == [(32, 32)]
    assert smaller(torch.rand(1, 3, *SIZE, device="meta")) == []


def test_no_point_goes_alone_through_a_model_that_refuses_one() -> None:
    class Squeezing(nn.Module):
        """Loses the images' dimension where there is one image."""

        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU())
            self.fc = nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.features(x).mean((2, 3)).squeeze())

    explainer = ExpectedGradCAM(seeded(Squeezing), "features", Perturbation(), num_samples=4)
    explanation = explainer(images(3), images(4, seed=1), 1)
    assert explanation.completeness_gap.max() < 1e-3
