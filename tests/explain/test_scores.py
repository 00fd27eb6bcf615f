"""What is explained: the named scores, a score of one's own, binary models, and outputs of every shape."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from captum.attr import LayerIntegratedGradients
from torch import Tensor, nn
from torch.nn.functional import softmax

from egcam_lightning.explain import Draws, ExpectedGradCAM, Perturbation
from egcam_lightning.explain.outputs import select_output
from egcam_lightning.explain.scores import as_score, num_classes, predicted_class
from tests.explain.captum_oracles import midpoints
from tests.support.maps import pooled_gap, relative_error
from tests.support.networks import CLASSES, VGG, Case, Wrapped, seeded
from tests.support.pictures import images

LOGITS = torch.tensor([[1.0, 3.0, -2.0], [0.5, -1.0, 0.0]])


def test_named_scores_by_hand() -> None:
    target = torch.tensor([0, 2])
    probability = torch.stack([softmax(LOGITS[0], 0)[0], softmax(LOGITS[1], 0)[2]])
    torch.testing.assert_close(as_score("logit")(LOGITS, target), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(as_score("probability")(LOGITS, target), probability)
    torch.testing.assert_close(as_score("log_probability")(LOGITS, target), probability.log())
    torch.testing.assert_close(as_score("margin")(LOGITS, target), torch.tensor([-2.0, -0.5]))


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_single_logit_stands_for_class_one_and_its_negative_for_class_zero(shape: tuple[int, ...]) -> None:
    logit = torch.tensor([1.5, -0.5])
    output, target = logit.reshape(shape), torch.tensor([1, 0])
    for name in ("logit", "margin"):
        torch.testing.assert_close(as_score(name)(output, target), torch.tensor([1.5, 0.5]))
    expected = torch.tensor([1.5, 0.5]).sigmoid()
    torch.testing.assert_close(as_score("probability")(output, target), expected)
    torch.testing.assert_close(as_score("log_probability")(output, target), expected.log())
    assert predicted_class(output).tolist() == [1, 0]
    assert num_classes(output) == 2


@pytest.mark.parametrize("score", ["logit", "log_probability", "probability", "margin"])
def test_every_score_is_explained_as_captum_explains_it(vgg_case: Case, score: str) -> None:
    samples = 6
    explainer = ExpectedGradCAM(vgg_case.model, vgg_case.layer, Perturbation(baseline="zeros"), score=score)
    draws = Draws(torch.zeros(samples, 3, dtype=torch.long), midpoints(samples, 3))
    ours = explainer(vgg_case.inputs, target=vgg_case.target, draws=draws)

    def by_hand(output: Tensor) -> Tensor:
        target = vgg_case.target.repeat(len(output) // 3)[:, None]
        other = output.scatter(1, target, -torch.inf).amax(1)
        own = {
            "logit": output,
            "log_probability": output.log_softmax(1),
            "probability": output.softmax(1),
            "margin": output - other[:, None],
        }
        return own[score].gather(1, target)[:, 0]

    theirs = LayerIntegratedGradients(Wrapped(vgg_case.model, by_hand), vgg_case.module).attribute(
        vgg_case.inputs, torch.zeros_like(vgg_case.inputs), n_steps=samples, method="riemann_middle"
    )
    assert relative_error(ours.attribution, theirs.sum(1).detach()) < 1e-4


@pytest.mark.parametrize("score", ["logit", "log_probability", "probability", "margin"])
def test_every_score_is_complete(vgg_case: Case, score: str) -> None:
    explainer = ExpectedGradCAM(vgg_case.model, "features.7", num_samples=256, score=score)
    explanation = explainer(images(6), vgg_case.baselines, 1)
    assert pooled_gap(explanation) < 0.06


def test_a_score_of_ones_own_is_explained(vgg_case: Case) -> None:
    weight = torch.arange(CLASSES, dtype=torch.float32, requires_grad=True)  # a parameter leaks no graph
    explainer = ExpectedGradCAM(
        vgg_case.model, vgg_case.layer, num_samples=8, score=lambda output, target: (output * weight).sum(1) + target
    )
    logits = [ExpectedGradCAM(vgg_case.model, vgg_case.layer, num_samples=8) for _ in range(CLASSES)]
    ours = explainer(vgg_case.inputs, vgg_case.baselines, 0)
    of_classes = [e(vgg_case.inputs, vgg_case.baselines, c).attribution * c for c, e in enumerate(logits)]
    assert relative_error(ours.attribution, torch.stack(of_classes).sum(0)) < 1e-4
    tensors = [value for value in vars(ours).values() if isinstance(value, Tensor)]
    assert len(tensors) == 11
    assert not any(tensor.requires_grad for tensor in tensors)


@pytest.mark.parametrize(
    "shape",
    [lambda y: y, lambda y: y[:, 0], lambda y: y.squeeze()],
    ids=["(B, 1)", "(B,)", "squeezed"],
)
def test_binary_models_are_explained_in_every_shape_of_their_logit(shape: Any) -> None:
    model = seeded(lambda: VGG(classes=1))
    two = Wrapped(model, lambda y: torch.cat([-y, y], 1))
    target = torch.tensor([0, 1, 1])
    expected = ExpectedGradCAM(two, "model.features.4", num_samples=8)(images(3), images(4, seed=1), target)
    binary = ExpectedGradCAM(Wrapped(model, shape), "model.features.4", num_samples=8)
    ours = binary(images(3), images(4, seed=1), target)
    assert relative_error(ours.draws, expected.draws) < 1e-5
    torch.testing.assert_close(ours.score, expected.score)
    torch.testing.assert_close(ours.baseline_score, expected.baseline_score)
    alone = binary(images(3)[:1], images(4, seed=1), target[:1])
    assert relative_error(alone.draws, expected.draws[:, :1]) < 1e-4
    assert torch.equal(binary(images(3), images(4, seed=1)).target, (two(images(3))[:, 1] > 0).long())


def test_targets_may_be_one_for_all_or_predicted(vgg_case: Case) -> None:
    explainer = ExpectedGradCAM(vgg_case.model, vgg_case.layer, num_samples=4)
    one = explainer(vgg_case.inputs, vgg_case.baselines, 2)
    each = explainer(vgg_case.inputs, vgg_case.baselines, torch.tensor([2, 2, 2], dtype=torch.int32))
    assert torch.equal(one.draws, each.draws)
    assert one.target.tolist() == each.target.tolist() == [2, 2, 2]
    predicted = explainer(vgg_case.inputs, vgg_case.baselines)
    assert torch.equal(predicted.target, vgg_case.model(vgg_case.inputs).argmax(1))
    assert one.target.dtype == predicted.target.dtype == torch.int64


@dataclass
class Output:
    loss: Tensor | None
    logits: Tensor


Named = namedtuple("Named", ["first", "second"])


@pytest.mark.parametrize(
    ("after", "key"),
    [
        (lambda y: (y, y.mean()), None),
        (lambda y: [y.mean(), y], 1),
        (lambda y: {"features": y.mean(), "logits": y}, None),
        (lambda y: {"whatever": y}, None),
        (lambda y: {"a": y * 0, "b": y}, "b"),
        (lambda y: Output(None, y), None),
        (lambda y: Output(y * 0, y), "logits"),
        (lambda y: Named(y * 0, y), "second"),
    ],
)
def test_logits_are_found_in_whatever_a_model_returns(vgg_case: Case, after: Any, key: str | int | None) -> None:
    expected = ExpectedGradCAM(vgg_case.model, "features.4", num_samples=4)(vgg_case.inputs, vgg_case.baselines, 1)
    explainer = ExpectedGradCAM(Wrapped(vgg_case.model, after), "model.features.4", num_samples=4, output_key=key)
    assert torch.equal(explainer(vgg_case.inputs, vgg_case.baselines, 1).draws, expected.draws)


def test_forward_fn_calls_the_model(vgg_case: Case) -> None:
    class TwoInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = vgg_case.model

        def forward(self, x: Tensor, scale: float) -> Tensor:
            return self.model(x) * scale

    explainer = ExpectedGradCAM(
        TwoInputs(), "model.features.4", num_samples=4, forward_fn=lambda model, x: model(x, scale=3.0)
    )
    expected = ExpectedGradCAM(vgg_case.model, "features.4", num_samples=4)(vgg_case.inputs, vgg_case.baselines, 1)
    assert relative_error(explainer(vgg_case.inputs, vgg_case.baselines, 1).draws, expected.draws * 3) < 1e-5


def test_an_output_without_logits_raises_with_what_is_there() -> None:
    with pytest.raises(ValueError, match=r"dict with keys \['a', 'b'\]. Pass `output_key`"):
        select_output({"a": LOGITS, "b": LOGITS})
    with pytest.raises(ValueError, match=r"no 'c'; it is a dict with keys \['a'\]"):
        select_output({"a": LOGITS}, "c")
    with pytest.raises(ValueError, match=r"no 2; it is a tuple of \(a tensor of shape \(2, 3\), a str\)"):
        select_output((LOGITS, "x"), 2)
