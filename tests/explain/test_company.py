"""What goes through a model beside an image changes nothing: models that mix the images of a batch, and copies."""

from __future__ import annotations

import warnings
from collections import OrderedDict, defaultdict, deque
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from egcam_lightning.explain import ExpectedGradCAM, Perturbation
from tests.support.maps import pooled_gap, relative_error
from tests.support.networks import CLASSES, VGG, Pooled, ResNet, Wrapped, seeded
from tests.support.pictures import images

MIXES = "depends on the other images of its batch"


class BatchStatistics(nn.Module):
    """Normalises by the statistics of whatever batch there is, in front of the layer or behind it."""

    def __init__(self, behind: bool = True) -> None:
        super().__init__()
        norm = nn.BatchNorm2d(8, track_running_stats=False)
        self.layer = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Identity() if behind else norm, nn.ReLU())
        self.head = nn.Sequential(norm if behind else nn.Identity(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.head(self.layer(x)).amax((2, 3)))


@pytest.mark.parametrize("behind", [True, False])
@pytest.mark.parametrize("space", ["activation", "input"])
@pytest.mark.parametrize("chunk_size", [None, 5])
def test_images_that_a_model_mixes_are_explained_alone_with_a_warning(
    behind: bool, space: str, chunk_size: int | None
) -> None:
    model = seeded(lambda: BatchStatistics(behind))
    inputs, baselines = images(3) * torch.tensor([1.0, 2.0, 4.0]).view(-1, 1, 1, 1), images(4, seed=1)
    explainer = ExpectedGradCAM(model, "layer", Perturbation(space=space), num_samples=8, chunk_size=chunk_size)
    with pytest.warns(UserWarning, match=MIXES) as caught:
        explanations = [explainer(inputs, baselines, 1) for _ in range(2)]
    assert sum(MIXES in str(w.message) for w in caught) == 1
    assert len(caught) == 1, "the layer is a cut of the network of one image"
    alone = [explainer(inputs[i : i + 1], baselines, 1, image_index=[i]) for i in range(3)]
    for explanation in explanations:
        assert relative_error(explanation.draws, torch.cat([e.draws for e in alone], 1)) < 1e-5
        with torch.no_grad():
            expected = torch.cat([model(image[None])[:, 1] for image in inputs])
        torch.testing.assert_close(explanation.score, expected)
    score = explainer.bind(inputs, torch.tensor([1, 1, 1]))
    torch.testing.assert_close(score(inputs, torch.arange(3), False), explanations[0].score)


@pytest.mark.parametrize("behind", [True, False])
def test_maps_of_images_that_a_model_mixes_are_complete(behind: bool) -> None:
    explainer = ExpectedGradCAM(seeded(lambda: BatchStatistics(behind)), "layer", num_samples=128)
    with pytest.warns(UserWarning, match=MIXES):
        assert pooled_gap(explainer(images(2), images(4, seed=1), 1)) < 0.1


def test_what_cannot_be_seen_yet_is_seen_once_the_head_has_moved() -> None:
    model = seeded(BatchStatistics)
    weight = model.fc.weight.detach().clone()
    nn.init.zeros_(model.fc.weight)
    explainer = ExpectedGradCAM(model, "layer", num_samples=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explainer(images(3), images(4, seed=1), 1)
    model.fc.weight.data = weight
    with pytest.warns(UserWarning, match=MIXES):
        explainer(images(3), images(4, seed=1), 1)


@pytest.mark.parametrize("target_layer", ["layer", ["layer", "head"]])
def test_auto_and_fast_paths_know_of_it(target_layer: Any) -> None:
    explainer = ExpectedGradCAM(seeded(BatchStatistics), target_layer)
    with pytest.warns(UserWarning, match=MIXES) as caught:
        assert explainer.is_fast(images(3))
    assert len(caught) == 1


def test_a_model_that_mixes_and_takes_no_single_image_raises_with_what_to_write() -> None:
    model = seeded(lambda: nn.Sequential(Pooled(), nn.BatchNorm1d(CLASSES, track_running_stats=False)))
    with pytest.raises(ValueError, match=r"depends on the other images.*one image alone.*Expected more than 1 value"):
        ExpectedGradCAM(model, "0.features").find(images(3))


class Noisy(nn.Module):
    """Drops features whatever mode it is in."""

    def __init__(self) -> None:
        super().__init__()
        self.model = seeded(VGG)

    def forward(self, x: Tensor) -> Tensor:
        return self.model.classifier(nn.functional.dropout(self.model.avgpool(self.model.features(x)).flatten(1), 0.5))


def test_dropout_that_is_always_on_is_no_mixing() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=f".*{MIXES}")
        ExpectedGradCAM(Noisy(), "model.features.7", num_samples=2)(images(3), images(4, seed=1), 1)


class Sequence(nn.Module):
    """A transformer whose tokens come first, as PyTorch's do by default."""

    def __init__(self, batch_first: bool, token: bool = True) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 16)) if token else None
        block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(block, 4, enable_nested_tensor=False)
        self.head = nn.Linear(16, CLASSES)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        if self.token is not None:
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        if not self.batch_first:
            x = x.transpose(0, 1).contiguous()
        x = self.encoder(x)
        x = x if self.batch_first else x.view(len(x), -1, 16).transpose(0, 1)
        return self.head(x.mean(1) if self.token is None else x[:, 0])


@pytest.mark.parametrize("token", [True, False])
@pytest.mark.parametrize("layer", ["auto", "last", "encoder.layers.1", "encoder"])
@pytest.mark.parametrize("space", ["activation", "input"])
@pytest.mark.usefixtures("no_warnings")
def test_tokens_that_come_first_are_explained_like_images_that_do(token: bool, layer: str, space: str) -> None:
    first, second = (
        ExpectedGradCAM(seeded(lambda b=b: Sequence(b, token)), layer, Perturbation(space=space), num_samples=4)
        for b in (True, False)
    )
    ours, theirs = (explainer(images(3), images(4, seed=1), 1) for explainer in (second, first))
    assert ours.layer == theirs.layer
    last = "encoder.layers.0" if token else "encoder"
    two = f"{last}+encoder.layers.2" if token and space == "activation" else last
    assert first.layer == {"last": last, "auto": two}.get(layer, layer)
    assert ours.attribution.shape == (3, 6, 8)
    if layer == "encoder" and token:  # nothing but the class token is read there
        assert not ours.attribution.any()
    else:
        assert relative_error(ours.draws, theirs.draws) < 1e-4
    torch.testing.assert_close(ours.off_grid, theirs.off_grid, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("no_warnings")
def test_a_transform_of_ones_own_is_given_the_images_first() -> None:
    def transform(activation: Tensor) -> Tensor:
        return activation[:, 1:].reshape(len(activation), 6, 8, 16).movedim(-1, 1)

    model = seeded(lambda: Sequence(batch_first=False))
    own, found = (
        ExpectedGradCAM(model, "encoder.layers.1", num_samples=4, reshape_transform=t) for t in (transform, None)
    )
    ours, theirs = (e(images(3), images(4, seed=1), 1) for e in (own, found))
    assert relative_error(ours.draws, theirs.draws) < 1e-5


class Named(NamedTuple):
    features: Tensor
    rest: int = 0


def _defaultdict(x: Tensor) -> Any:
    found = defaultdict(list)
    found["x"] = x
    return found


class Configured(dict):
    """A mapping that is built from something else than its items."""

    def __init__(self, size: int, name: str) -> None:
        super().__init__()
        self.size, self.name = size, name


def _configured(x: Tensor) -> Any:
    found = Configured(1, "x")
    found["x"] = x
    return found


CONTAINERS = {
    "defaultdict": (_defaultdict, lambda y: y["x"]),
    "of its own": (_configured, lambda y: y["x"]),
    "ordered": (lambda x: OrderedDict(x=x), lambda y: y["x"]),
    "read-only": (lambda x: MappingProxyType({"x": x}), lambda y: y["x"]),
    "list": (lambda x: [x, None], lambda y: y[0]),
    "named": (Named, lambda y: y.features),
}


@pytest.mark.parametrize(("wrap", "unwrap"), CONTAINERS.values(), ids=CONTAINERS)
@pytest.mark.parametrize("space", ["activation", "input"])
@pytest.mark.usefixtures("no_warnings")
def test_a_layer_may_return_its_tensor_in_any_container(wrap: Any, unwrap: Any, space: str) -> None:
    class Contained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = seeded(Pooled)
            self.layer = Wrapped(self.model.features, after=wrap)

        def forward(self, x: Tensor) -> Tensor:
            return self.model.fc(unwrap(self.layer(x)).mean((2, 3)))

    plain = ExpectedGradCAM(seeded(Pooled), "features", Perturbation(space=space), num_samples=4)
    ours = ExpectedGradCAM(Contained(), "layer", Perturbation(space=space), num_samples=4)
    expected, found = (e(images(3), images(4, seed=1), 1).draws for e in (plain, ours))
    assert relative_error(found, expected) < 1e-5


def test_a_container_without_a_tensor_raises_with_its_name() -> None:
    class Contained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = seeded(Pooled)
            self.layer = Wrapped(self.model.features, after=lambda x: deque([x]))

        def forward(self, x: Tensor) -> Tensor:
            return self.model.fc(self.layer(x)[0].mean((2, 3)))

    with pytest.raises(ValueError, match="'layer' returns no tensor, but deque"):
        ExpectedGradCAM(Contained(), "layer").find(images(3))


class Augmented(nn.Module):
    """Averages over an image and its mirror image at test time: in two calls, or in a batch twice as large."""

    def __init__(self, at_once: bool) -> None:
        super().__init__()
        self.network = seeded(ResNet)
        self.at_once = at_once

    def forward(self, x: Tensor) -> Tensor:
        if self.at_once:
            return self.network(torch.cat([x, x.flip(3)])).view(2, len(x), -1).mean(0)
        return (self.network(x) + self.network(x.flip(3))) / 2


@pytest.mark.parametrize(
    ("at_once", "layer", "message"),
    [
        (True, "auto", r"'network\.layer2\S*' is of shape \(8, 16, 6, 8\) for 4 images.*test-time.*`forward_fn`"),
        (False, "auto", r"'network\.layer2\S*' is called 2 times for 4 images.*test-time augmentation.*`forward_fn`"),
        (True, "network.layer1", r"'network\.layer1' to have a row for each of 4 images, but.*\(8, 12,.*`forward_fn`"),
        (False, "network.layer1", r"'network\.layer1' once, but it was called 2 times.*`forward_fn`"),
    ],
)
def test_test_time_augmentation_raises_with_what_to_write(at_once: bool, layer: str, message: str) -> None:
    model = Augmented(at_once)
    with pytest.raises(ValueError, match=message):
        ExpectedGradCAM(model, layer)(images(4), images(4, seed=1), 1)
    explainer = ExpectedGradCAM(model, layer, num_samples=2, forward_fn=lambda model, x: model.network(x))
    assert explainer(images(4), images(4, seed=1), 1).draws.isfinite().all()
