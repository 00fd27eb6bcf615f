"""Any target: whatever a model computes, the callback explains what it was asked to."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity, cross_entropy, mse_loss
from torch.utils.data import DataLoader, TensorDataset

from egcam_lightning.explain.scores import RegionScore
from tests.support.fits import PooledNet, fit, make_callback

CLASSES = 4
COUNT = 8
CHOSEN = [0, 2, 4, 6]
SIZE = (16, 20)
LABELS = torch.arange(COUNT).flip(0) % CLASSES


def pictures(seed: int = 0) -> Tensor:
    """Noise, brighter where the class is higher, and rounded as a checkpoint keeps it."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(COUNT, 3, *SIZE, generator=generator) + LABELS.view(-1, 1, 1, 1) / 4).half().float()


class Net(PooledNet):
    """A network of its own, because it returns whatever a test asks for, of its pooled features or of their grid.

    Args:
        after: from the module to what its forward returns, given the pooled features and the grid of features.
        loss: from that and the labels to a loss.
        outputs: outputs of the linear head.

    """

    def __init__(self, after: Any = None, loss: Any = cross_entropy, outputs: int = CLASSES) -> None:
        super().__init__(loss=loss, classes=outputs, lr=0.1)
        self.other = nn.Linear(6, 2)
        self.dense = nn.Conv2d(6, CLASSES, 1)
        self.after = after or (lambda net, pooled, grid: net.head(pooled))

    def forward(self, images: Tensor) -> Any:
        grid = self.features(images)
        return self.after(self, grid.mean((2, 3)), grid)


def run(tmp_path, net, labels=LABELS, epochs=1, **arguments):
    """Epochs of two batches, with the callback, which must not fail."""
    callback = make_callback(**arguments)
    loaders = [DataLoader(TensorDataset(pictures(seed), labels), 4) for seed in (1, 0)]
    fit(
        tmp_path, callback, net=net, train=loaders[0], val=loaders[1],
        logger=False, max_epochs=epochs, num_sanity_val_steps=0,
    )  # fmt: skip
    net.eval()
    return callback


@torch.no_grad()
def output_of(net):
    """What the trained model says of the explained images."""
    return net(pictures()[CHOSEN])


def assert_explains(callback, target, score, gap=1e-3):
    """The last snapshot is of these targets, its scores are the model's own, and its maps add up to them."""
    last = callback.history[-1]
    assert last.target.tolist() == torch.as_tensor(target).tolist()
    torch.testing.assert_close(last.score, score, rtol=1e-4, atol=1e-5)
    assert last.attribution.isfinite().all()
    assert last.attribution.abs().flatten(1).amax(1).gt(0).all()
    assert last.metrics["completeness_gap"] < gap


def of(logits, target):
    return logits.gather(1, torch.as_tensor(target)[:, None])[:, 0]


# ---- which class


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("label", lambda logits: LABELS[CHOSEN]),
        ("predicted", lambda logits: logits.argmax(1)),
        ("runner_up", lambda logits: logits.scatter(1, LABELS[CHOSEN][:, None], -torch.inf).argmax(1)),
        (3, lambda logits: torch.full((4,), 3)),
        (lambda output, labels: output.argmin(1), lambda logits: logits.argmin(1)),
        (lambda output, labels: (labels + 1) % CLASSES, lambda logits: (LABELS[CHOSEN] + 1) % CLASSES),
        (lambda output, labels: [2, 1, 0, 3], lambda logits: torch.tensor([2, 1, 0, 3])),
    ],
    ids=["label", "predicted", "runner_up", "a class", "a callable of outputs", "a callable of labels", "a list"],
)
def test_the_class_explained_is_the_one_asked_for(tmp_path, target, expected):
    net = Net()
    callback = run(tmp_path, net, target=target)
    logits = output_of(net)
    assert_explains(callback, expected(logits), of(logits, expected(logits)))
    assert torch.equal(callback.history[-1].prediction, logits.argmax(1))


@pytest.mark.parametrize("target", ["predicted", "runner_up", lambda output, labels: output.argmin(1)])
def test_a_class_settled_by_the_model_stays_while_the_model_changes(tmp_path, target):
    net = Net()
    callback = run(tmp_path, net, target=target, epochs=3)
    epochs = [snapshot for snapshot in callback.history if snapshot.when == "epoch"]
    assert [snapshot.target.tolist() for snapshot in epochs] == [epochs[0].target.tolist()] * 3
    assert_explains(callback, epochs[0].target, of(output_of(net), epochs[0].target))


@pytest.mark.parametrize(
    ("score", "of_logits"),
    [
        ("logit", lambda logits: logits),
        ("probability", lambda logits: logits.softmax(1)),
        ("log_probability", lambda logits: logits.log_softmax(1)),
        ("margin", lambda logits: logits - torch.stack([logits.index_fill(1, torch.tensor(c), -torch.inf).amax(1)
                                                        for c in range(CLASSES)], 1)),
    ],
)  # fmt: skip
def test_the_score_of_the_class_is_the_one_asked_for(tmp_path, score, of_logits):
    net = Net()
    callback = run(tmp_path, net, score=score, num_samples=32)
    assert_explains(callback, LABELS[CHOSEN], of(of_logits(output_of(net)), LABELS[CHOSEN]), gap=0.05)


# ---- multi-label

MULTI_HOT = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1]]).repeat(2, 1).float()


@pytest.mark.parametrize("target", ["label", lambda output, labels: labels], ids=["label", "a callable"])
def test_the_set_of_an_images_labels_is_explained_by_their_mean(tmp_path, target):
    net = Net(loss=binary_cross_entropy_with_logits)
    callback = run(
        tmp_path, net, MULTI_HOT, target=target, epochs=3, metrics=("infidelity", "insertion_auc", "max_sensitivity")
    )
    sets = MULTI_HOT[CHOSEN]
    mean = (output_of(net) * sets).sum(1) / sets.sum(1)
    assert_explains(callback, [0, 0, 0, 0], mean)
    assert callback.history[-1].drift_previous is not None
    assert {"infidelity", "insertion_auc", "max_sensitivity"} <= set(callback.history[-1].metrics)
    assert callback.history[-1].metrics["infidelity"] < 1


def test_sets_of_more_images_than_are_tried_at_first_are_explained(tmp_path):
    net = Net(loss=binary_cross_entropy_with_logits)
    callback = run(tmp_path, net, MULTI_HOT, num_images=COUNT)
    with torch.no_grad():
        mean = (net(pictures()) * MULTI_HOT).sum(1) / MULTI_HOT.sum(1)
    torch.testing.assert_close(callback.history[-1].score, mean, rtol=1e-4, atol=1e-5)


def test_one_hot_labels_are_labels(tmp_path):
    net = Net()
    callback = run(tmp_path, net, torch.nn.functional.one_hot(LABELS, CLASSES).float())
    assert callback.history.probe.labels.tolist() == LABELS[CHOSEN].tolist()
    assert_explains(callback, LABELS[CHOSEN], of(output_of(net), LABELS[CHOSEN]))


def test_zeros_and_ones_that_are_not_of_the_models_classes_are_no_labels(tmp_path):
    net = Net(loss=lambda logits, attributes: logits.square().mean())
    callback = run(tmp_path, net, torch.cat([MULTI_HOT, MULTI_HOT], 1))
    logits = output_of(net)
    assert_explains(callback, logits.argmax(1), logits.amax(1))


def test_of_an_image_without_labels_the_top_class_stands_for_them(tmp_path):
    net = Net(loss=binary_cross_entropy_with_logits)
    labels = MULTI_HOT.clone()
    labels[2] = 0
    callback = run(tmp_path, net, labels)
    logits = output_of(net)
    sets = labels[CHOSEN]
    expected = (logits * sets).sum(1) / sets.sum(1)
    expected[1] = logits[1].max()
    torch.testing.assert_close(callback.history[-1].score, expected)


def test_of_several_labels_the_class_that_the_model_holds_most_likely_is_explained(tmp_path):
    net = Net(loss=binary_cross_entropy_with_logits)
    callback = run(tmp_path, net, MULTI_HOT, target="predicted")
    logits = output_of(net)
    assert callback.history.probe.labels is None
    assert_explains(callback, logits.argmax(1), logits.amax(1))


def test_a_set_of_classes_is_explained_by_their_mean_through_a_callable(tmp_path):
    net = Net(loss=binary_cross_entropy_with_logits)
    callback = run(
        tmp_path, net, MULTI_HOT, score=lambda output, target: output[:, [0, 2]].mean(1), metrics=("infidelity",)
    )
    assert_explains(callback, [0] * 4, output_of(net)[:, [0, 2]].mean(1))


# ---- binary


@pytest.mark.parametrize("squeeze", [False, True], ids=["(B, 1)", "(B,)"])
@pytest.mark.parametrize("kind", [torch.int64, torch.float32, torch.bool], ids=str)
def test_one_logit_stands_for_class_one_and_its_negative_for_class_zero(tmp_path, squeeze, kind):
    def loss(output, labels):
        return binary_cross_entropy_with_logits(output.reshape(-1), labels.float())

    net = Net(lambda net, pooled, _: net.head(pooled).squeeze(1) if squeeze else net.head(pooled), loss, outputs=1)
    labels = LABELS // 2
    callback = run(tmp_path, net, labels.to(kind), metrics=("insertion_auc", "deletion_auc"))
    expected = labels[CHOSEN]
    logit = output_of(net).reshape(-1)
    assert callback.history.probe.labels.tolist() == expected.tolist() == [1, 0, 1, 0]
    assert_explains(callback, expected, torch.where(expected == 1, logit, -logit))
    assert torch.equal(callback.history[-1].prediction, (logit > 0).long())
    assert 0 < callback.history[-1].metrics["insertion_auc"] < 1


@pytest.mark.parametrize("squeeze", [False, True], ids=["(B, 1)", "(B,)"])
def test_the_runner_up_of_two_classes_is_the_other_one(tmp_path, squeeze):
    def loss(output, labels):
        return binary_cross_entropy_with_logits(output.reshape(-1), labels.float())

    net = Net(lambda net, pooled, _: net.head(pooled).squeeze(1) if squeeze else net.head(pooled), loss, outputs=1)
    callback = run(tmp_path, net, LABELS // 2, target="runner_up")
    logit = output_of(net).reshape(-1)
    expected = 1 - LABELS[CHOSEN] // 2
    assert_explains(callback, expected, torch.where(expected == 1, logit, -logit))


# ---- several heads, and outputs of every kind


@dataclass
class Heads:
    shape: Tensor
    colour: Tensor


Two = namedtuple("Two", ["shape", "colour"])


def first(output):
    for name in ("shape", "logits", "out"):
        if isinstance(output, dict) and name in output:
            return output[name]
        if hasattr(output, name):
            return getattr(output, name)
    return output[0]


@pytest.mark.parametrize(
    ("after", "key"),
    [
        (lambda net, p, g: {"shape": net.head(p), "colour": net.other(p)}, "colour"),
        (lambda net, p, g: (net.head(p), net.other(p)), 1),
        (lambda net, p, g: [net.head(p), net.other(p)], -1),
        (lambda net, p, g: Heads(net.head(p), net.other(p)), "colour"),
        (lambda net, p, g: Two(net.head(p), net.other(p)), "colour"),
        (lambda net, p, g: {"heads": {"shape": net.head(p), "colour": net.other(p)}, "shape": net.head(p)},
         "heads.colour"),
        (lambda net, p, g: (net.head(p), {"colour": net.other(p)}), "1.colour"),
    ],
    ids=["dict", "tuple", "list", "dataclass", "named tuple", "nested dicts", "a tuple of dicts"],
)  # fmt: skip
def test_one_of_several_heads_is_chosen_by_its_key(tmp_path, after, key):
    net = Net(after, lambda output, labels: cross_entropy(first(output), labels))
    callback = run(tmp_path, net, output_key=key, target=1)
    with torch.no_grad():
        pooled = net.features(pictures()[CHOSEN]).mean((2, 3))
        logits = net.other(pooled)
    assert_explains(callback, [1] * 4, logits[:, 1])


@pytest.mark.parametrize(
    "after",
    [
        lambda net, p, g: {"logits": net.head(p), "features": p},
        lambda net, p, g: {"features": g, "out": net.head(p)},
        lambda net, p, g: {"anything": net.head(p), "step": 3},
        lambda net, p, g: (net.head(p), p),
        lambda net, p, g: namedtuple("Output", ["loss", "logits"])(None, net.head(p)),
    ],
    ids=["logits in a dict", "out in a dict", "the only tensor of a dict", "first of a tuple", "logits of a tuple"],
)
def test_logits_with_a_usual_name_or_place_are_found(tmp_path, after):
    def loss(output, labels):
        return cross_entropy(output["anything"] if "anything" in output else first(output), labels)

    net = Net(after, loss)
    callback = run(tmp_path, net)
    with torch.no_grad():
        logits = net.head(net.features(pictures()[CHOSEN]).mean((2, 3)))
    assert_explains(callback, LABELS[CHOSEN], of(logits, LABELS[CHOSEN]))


# ---- segmentation


def segmenter():
    """A network whose predicted classes differ from position to position, and learn no more."""
    net = Net(lambda net, pooled, grid: net.dense(grid), lambda output, masks: 0 * cross_entropy(output, masks))
    with torch.no_grad():
        net.dense.weight *= 10
        net.dense.bias.copy_(-net.dense.weight[:, :, 0, 0] @ net.features(pictures()).mean((0, 2, 3)))
    return net


MASKS = torch.zeros(COUNT, 8, 10, dtype=torch.int64)
MASKS[:, :4, :5] = 1
MASKS[::4, 4:, 5:] = 2


@pytest.mark.parametrize("target", ["label", 1, 0], ids=["the class that most positions have", "a class", "background"])
def test_a_segmented_class_is_explained_over_its_own_region(tmp_path, target):
    net = segmenter()
    callback = run(
        tmp_path, net, MASKS, score="region", target=target, num_samples=8,
        metrics=("insertion_auc", "deletion_auc", "infidelity"),
    )  # fmt: skip
    output = output_of(net)
    predicted = output.argmax(1)
    expected, score, shares = [], [], []
    for image, classes in enumerate(predicted):
        counts = classes.flatten().bincount(minlength=CLASSES).tolist()
        c = max(range(1, CLASSES), key=counts.__getitem__) if target == "label" else target
        region = classes == c
        expected.append(c)
        shares.append(region.float().mean().item())
        score.append(output[image, c][region if region.any() else ~region].mean())
    assert sum(0 < share < 1 for share in shares) >= 2
    assert_explains(callback, expected, torch.stack(score))
    assert {"insertion_auc", "deletion_auc", "infidelity"} <= set(callback.history[-1].metrics)


@pytest.mark.parametrize("rows", [4, 1], ids=["one per image", "one for all"])
def test_a_segmented_class_is_explained_over_a_given_mask(tmp_path, rows):
    mask = torch.zeros(rows, 8, 10, dtype=torch.bool)
    mask[:, 2:5, 3:9] = True
    net = segmenter()
    callback = run(
        tmp_path, net, MASKS, score=RegionScore(mask), target=2, num_samples=8,
        metrics=("insertion_auc", "infidelity"),
    )  # fmt: skip
    assert_explains(callback, [2] * 4, output_of(net)[:, 2, 2:5, 3:9].mean((1, 2)))
    # The head is a 1x1 convolution: what lies outside the mask does not matter to its score.
    relevance = callback.history[-1].attribution.abs()
    assert relevance.shape == (4, 8, 10)
    assert relevance[:, 2:5, 3:9].amax((1, 2)).gt(0).all()
    assert relevance[:, 6:].max() == 0


# ---- regression


@pytest.mark.parametrize("shape", ["(B, 1)", "(B,)"])
@pytest.mark.parametrize(
    "labels", [LABELS * 10, LABELS + 0.5, (LABELS // 2).float()], ids=["integers", "floats", "zeros and ones"]
)
def test_a_value_is_explained_as_it_is_whatever_the_labels(tmp_path, shape, labels):
    def loss(output, labels):
        return mse_loss(output.reshape(-1), labels.float() / 30)

    net = Net(lambda net, p, _: net.head(p) if shape == "(B, 1)" else net.head(p)[:, 0], loss, outputs=1)
    callback = run(tmp_path, net, labels, score="value", metrics=("insertion_auc",))
    assert_explains(callback, [0] * 4, output_of(net).reshape(-1))
    assert callback.history[-1].prediction.tolist() == [-1] * 4  # a value is no class


@pytest.mark.parametrize(("target", "column"), [("label", 0), (2, 2)])
def test_one_of_several_values_is_chosen_by_its_column(tmp_path, target, column):
    net = Net(loss=lambda output, labels: mse_loss(output[:, 0], labels / 30))
    callback = run(tmp_path, net, LABELS * 10, score="value", target=target)
    assert_explains(callback, [column] * 4, output_of(net)[:, column])


# ---- anything else, through a callable


def test_metric_learning_is_explained_through_a_callable(tmp_path):
    anchor = torch.tensor([1.0, -1.0, 0.5, 2.0])

    def similarity(output, target):
        return cosine_similarity(output, anchor.to(output.device)[None])

    net = Net(loss=lambda output, labels: 1 - cosine_similarity(output, anchor[None]).mean())
    callback = run(tmp_path, net, LABELS + 100, score=similarity, num_samples=64, metrics=("infidelity",))
    assert_explains(callback, LABELS[CHOSEN] + 100, similarity(output_of(net), None), gap=0.1)
    assert callback.history[-1].prediction.tolist() == [-1] * 4


def test_a_callable_is_given_the_target(tmp_path):
    net = Net()
    callback = run(tmp_path, net, score=lambda output, target: of(output, target) * 2)
    assert_explains(callback, LABELS[CHOSEN], of(output_of(net), LABELS[CHOSEN]) * 2)


@pytest.mark.parametrize("arguments", [{}, {"target": "predicted"}], ids=["label", "predicted"])
def test_what_a_dense_output_calls_a_class_is_explained_through_a_callable(tmp_path, arguments):
    net = segmenter()
    callback = run(
        tmp_path, net, MASKS, score=lambda output, target: output[:, 3].flatten(1).mean(1), num_samples=8, **arguments
    )
    assert_explains(callback, [0] * 4, output_of(net)[:, 3].mean((1, 2)))
