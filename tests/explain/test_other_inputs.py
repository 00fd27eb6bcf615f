"""Models that take more than images: the rest is held fixed."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from egcam_lightning import ExpectedGradCAM, Perturbation
from tests.support.networks import CLASSES, seeded
from tests.support.pictures import images


class Late(nn.Module):
    """Image features and a table's row meet behind the layer, and are multiplied."""

    fast = True

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU())
        self.table = nn.Linear(4, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor, row: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)) * self.table(row))


class Modulated(Late):
    """The row scales the channels before the layer: what a baseline's activation is depends on it."""

    def forward(self, x: Tensor, row: Tensor) -> Tensor:
        hidden = self.features[1](self.features[0](x)) * self.table(row)[:, :6, None, None]
        return self.head(self.features[3](self.features[2](hidden)).mean((2, 3)))


class Stacked(Late):
    """The row becomes channels of the image, which a carrier of one image cannot be stacked with."""

    fast = False

    def __init__(self) -> None:
        super().__init__()
        self.features[0] = nn.Conv2d(7, 6, 3, 2, 1)

    def forward(self, x: Tensor, row: Tensor) -> Tensor:
        planes = row[:, :, None, None].expand(*row.shape, *x.shape[2:])
        return self.head(self.features(torch.cat([x, planes], 1)).mean((2, 3)))


class Fixed(nn.Module):
    """A model of images alone, with the other input of one image."""

    def __init__(self, model: nn.Module, row: Tensor) -> None:
        super().__init__()
        self.model, self.row = model, row

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x, self.row.expand(len(x), -1))


ROWS = torch.randn(3, 4, generator=torch.Generator().manual_seed(5))


@pytest.mark.filterwarnings("ignore:The layer .* is not a cut")
@pytest.mark.parametrize("kind", [Late, Modulated, Stacked])
@pytest.mark.parametrize(
    "perturbation",
    [
        Perturbation.expected(),
        Perturbation.expected(space="input"),
        Perturbation.integrated_grad_cam(),
        Perturbation.grad_cam(),
        Perturbation.smooth_grad_cam(),
    ],
    ids=["expected", "input space", "integrated grad-cam", "grad-cam", "smoothgrad-cam"],
)
def test_each_image_is_explained_as_if_the_model_took_it_alone(kind: type[Late], perturbation: Perturbation) -> None:
    model, x, baselines = seeded(kind), images(3), images(4, seed=1)
    target = torch.tensor([1, 4, 2])
    settings = {"target_layer": "features.3", "perturbation": perturbation, "num_samples": 8}
    ours = ExpectedGradCAM(model, **settings)(x, baselines, target, additional_forward_args=ROWS)
    for i in range(3):
        alone = ExpectedGradCAM(Fixed(model, ROWS[i : i + 1]), **{**settings, "target_layer": "model.features.3"})(
            x[i : i + 1], baselines, target[i : i + 1], image_index=[i]
        )
        for name in ("attribution", "score", "prediction"):
            torch.testing.assert_close(getattr(ours, name)[i], getattr(alone, name)[0])
        if kind.fast or perturbation.baseline != "none":  # the score of no activation is had on the fast path alone
            torch.testing.assert_close(ours.baseline_score[i], alone.baseline_score[0])
        assert torch.equal(ours.baseline_index[:, i], alone.baseline_index[:, 0])


@pytest.mark.parametrize("kind", [Late, Modulated, Stacked])
def test_the_fast_path_is_taken_where_it_holds(kind: type[Late]) -> None:
    explainer = ExpectedGradCAM(seeded(kind), "last", num_samples=4)
    assert explainer.is_fast(images(3), ROWS) is kind.fast
    assert explainer.layer == ("features.3" if kind is Modulated else "features")


def test_the_maps_are_complete_in_chunks_too() -> None:
    explainer = ExpectedGradCAM(seeded(Late), "features.3", num_samples=16, chunk_size=3)
    explanation = explainer(images(3), images(4, seed=1), 1, additional_forward_args=(ROWS,))
    assert explanation.completeness_gap.max() < 1e-4


def test_what_is_no_tensor_and_what_forward_fn_adds_reach_the_model_as_they_are() -> None:
    model = seeded(Late)

    def forward(model: nn.Module, x: Tensor, row: Tensor, factor: float) -> Tensor:
        assert factor == 2.0
        return model(x, row) * factor

    explainer = ExpectedGradCAM(model, "features.3", num_samples=4, forward_fn=forward)
    ours = explainer(images(3), images(4, seed=1), 1, additional_forward_args=(ROWS, 2.0))
    plain = ExpectedGradCAM(model, "features.3", num_samples=4)
    once = plain(images(3), images(4, seed=1), 1, additional_forward_args=ROWS)
    torch.testing.assert_close(ours.attribution, 2 * once.attribution)


def test_several_layers_take_them_too() -> None:
    model = seeded(Late)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both = ExpectedGradCAM(model, ["features.1", "features.3"], num_samples=8)
        first, second = both.each(images(3), images(4, seed=1), 1, additional_forward_args=ROWS)
        mean = both(images(3), images(4, seed=1), 1, additional_forward_args=ROWS)
    assert both.is_fast(images(3), ROWS)
    torch.testing.assert_close(
        mean.attribution.flatten(1).sum(1),
        (first.attribution.flatten(1).sum(1) + second.attribution.flatten(1).sum(1)) / 2,
    )


def test_a_tensor_without_a_row_an_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`additional_forward_args` to have 3 rows.*\(2, 4\)"):
        ExpectedGradCAM(seeded(Late), "features.3")(images(3), images(4), 1, additional_forward_args=ROWS[:2])
