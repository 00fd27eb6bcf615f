"""Whoever reads a message and asks 'what do I write now?' finds the answer in it."""

from __future__ import annotations

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.nn.functional import cross_entropy

from egcam_lightning import ExpectedGradCAM, ExpectedGradCAMCallback
from egcam_lightning.explain.scores import RegionScore
from egcam_lightning.metrics import CompletenessGap, Infidelity, PointingGame, Sparseness
from tests.contract.test_any_batch import Data, run, trains_on_noise
from tests.contract.test_any_target import Heads
from tests.contract.test_any_target import Net as AnyNet
from tests.support.fits import PooledNet as Classifier


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"target": "lable"}, ValueError, r"'label', 'predicted', 'runner_up', a class or a callable, but got 'lable'"),
        ({"target": 1.5}, ValueError, r"a class or a callable, but got 1.5"),
        ({"target": None}, ValueError, r"'label', 'predicted', .* but got None"),
        ({"metrics": None}, TypeError, r"several values, but got None. Write metrics=\('infidelity',\), or \(\)"),
        ({"metrics": [3]}, TypeError, r"names and torchmetrics.Metric, but got 3"),
        ({"metrics": {1: "infidelity"}}, TypeError, r"keys of `metrics` to be strings, but got 1. .* 'infidelity'"),
        (
            {"metrics": (Infidelity(), Infidelity(num_perturbations=4))},
            ValueError,
            r"Two of `metrics` have the key 'infidelity'.*metrics=\{'infidelity': Infidelity\(\), 'infidelity_2'",
        ),
        ({"metrics": ("sparseness", Sparseness())}, ValueError, r"Two of `metrics` have the key 'sparseness'"),
        (
            {"metrics": (CompletenessGap(),)},
            ValueError,
            r"'completeness_gap' of CompletenessGap is logged .* in any case. .*\{'my_completeness_gap': Compl",
        ),
        ({"metrics": ("relevance_mass",)}, ValueError, r"'relevance_mass' needs masks.* Write `masks_key`.* or leave"),
        ({"metrics": {"hit": PointingGame()}}, ValueError, r"'hit' needs masks of the objects. Write `masks_key`"),
        ({"class_names": "cat"}, TypeError, r"but got 'cat'. Write class_names=\('cat', 'dog'\)"),
        ({"mean": 0.5, "std": 0.5}, TypeError, r"but got 0.5. Write mean=\(0.5,\)"),
        ({"mean": (0.5,)}, ValueError, r"`mean` and `std` together.*mean=\(0.5,\), std=\(0.5,\), or none"),
        ({"perturbation": "grad_cam"}, TypeError, r"such as Perturbation.grad_cam\(\), but got 'grad_cam'"),
        ({"target_layer": 4}, TypeError, r"'auto', a module's name as in `model.named_modules\(\)`.* but got 4"),
        ({"target_layer": []}, ValueError, r"at least one layer, but got an empty list. Write 'auto'"),
        ({"alerts": {"consensus": "high"}}, ValueError, r"as in \{'consensus': 0.95\}, but got 'high'"),
        ({"alerts": {"egcam/consensus": 0.9}}, ValueError, r"without the prefix.* Write 'consensus'"),
        ({"probe": 3}, ValueError, r"several indices, or a batch, but got 3. Write \[3\]"),
        ({"probe": [-1]}, ValueError, r"0 and above, but got \[-1\]. Write such as probe=\[3, 17, 42\]"),
    ],
)
def test_of_an_argument_that_can_never_work(arguments, error, message):
    with pytest.raises(error, match=message):
        ExpectedGradCAMCallback(**arguments)


def unpacked(batch):
    images, labels = batch
    return images, labels


FORWARDS = {
    "the batch by key": (lambda self, batch: Classifier.forward(self, batch["image"]), "IndexError"),
    "the batch by attribute": (lambda self, batch: Classifier.forward(self, batch.image), "AttributeError"),
    "the batch unpacked": (lambda self, batch: Classifier.forward(self, unpacked(batch)[0]), "ValueError"),
    "images and labels": (lambda self, images, labels: Classifier.forward(self, images), "TypeError"),
    "none": (lambda self, *args: super(Classifier, self).forward(*args), "NotImplementedError"),
}


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
@pytest.mark.parametrize(("forward", "cause"), FORWARDS.values(), ids=FORWARDS.keys())
def test_of_a_module_that_is_not_called_with_images(tmp_path, forward, cause):
    net = type("Net", (Classifier,), {"forward": forward})(find=trains_on_noise)
    message = (
        rf"images of shape \(4, 3, 16, 20\) failed: {cause}: .* Pass `input_key` .*`forward_fn`, such as `lambda "
        r"module, images: module.model\(images\)`, .*`additional_keys`"
    )
    with pytest.raises(MisconfigurationException, match=message):
        run(tmp_path, net)


def test_of_images_that_the_model_does_not_take_while_training_goes_on(tmp_path):
    def depth_first(x, y):
        return {"depth": x[:, :1], "rgb": x, "label": y}

    with pytest.warns(UserWarning, match=r"first look .* training goes on.*\(4, 1, 16, 20\) .*Pass `input_key` where"):
        callback = run(tmp_path, Classifier(find=trains_on_noise), depth_first, strict=False)
    assert len(callback.history) == 0
    callback = run(tmp_path, Classifier(find=trains_on_noise), depth_first, input_key="rgb")  # as it says
    assert len(callback.history) == 2


@pytest.mark.parametrize(
    ("after", "arguments", "message"),
    [
        (lambda n, p, g: {"a": n.head(p), "b": n.other(p)}, {}, r"keys \['a', 'b'\]. .* such as output_key='a'"),
        (lambda n, p, g: Heads(n.head(p), n.other(p)), {}, r"fields \['shape', 'colour'\]. .*output_key='shape'"),
        (lambda n, p, g: {"a": n.head(p)}, {"output_key": "c"}, r"has no 'c'; .* keys \['a'\]. .*output_key='a'"),
        (lambda n, p, g: None, {}, r"which is a NoneType. Pass .* a `forward_fn` that returns them"),
        (lambda n, p, g: n.dense(g), {}, r"\(images, classes\), but .* \(4, 4, 8, 10\). Pass score='region'"),
        (lambda n, p, g: n.head(p), {"score": "region"}, r"\(images, classes, \*size\) .* \(4, 4\).* score='logit'"),
        (lambda n, p, g: n.dense(g), {"score": RegionScore(torch.ones(4, 16, 20))}, r"\(8, 10\), but .* Resize it"),
        (lambda n, p, g: n.dense(g), {"score": RegionScore(torch.ones(3, 8, 10))}, r"each of 4 images, or one for all"),
        (lambda n, p, g: n.other(p), {}, r"between 0 and 1, .* but got 2. Pass `target`, .* score='value'"),
        (lambda n, p, g: n.head(p), {"target": 7}, r"between 0 and 3, .* but got 7. Pass `target`, a class for all"),
        (lambda n, p, g: n.head(p), {"score": lambda o, t: o}, r"one number per image, .*, such as `lambda output"),
        (lambda n, p, g: n.head(p), {"target": lambda o, _: o}, r"for each of 4 images.*such as `lambda output"),
        (lambda n, p, g: n.head(p), {"target": lambda o, _: [9] * 4}, r"between 0 and 3, .* but got 9"),
        (lambda n, p, g: n.head(p), {"target": "runner_up", "score": "value"}, r"such as score='logit'"),
        (lambda n, p, g: n.head(p), {"mean": (0.5, 0.5), "std": (1, 1)}, r"3 numbers, .* but got 2 and 2"),
    ],
)
def test_of_an_output_and_what_is_to_be_explained_of_it(tmp_path, after, arguments, message):
    net = AnyNet(after, lambda output, labels: cross_entropy(net.head(torch.rand(4, 6)), labels))
    with pytest.raises(ValueError, match=message):
        run(tmp_path, net, **arguments)


def test_of_a_runner_up_without_labels(tmp_path):
    message = r"found none in the batch: .* under one of 'label', .* Pass `label_key`, or write target='predicted'"
    with pytest.raises(ValueError, match=message):
        run(tmp_path, Classifier(find=trains_on_noise), lambda x, y: {"image": x, "fine": y}, target="runner_up")


def test_of_a_diverged_model(tmp_path):
    net = Classifier(find=trains_on_noise, prepare=lambda x: x * torch.nan)
    with pytest.warns(UserWarning, match=r"100% of the explanations are not finite. .*lower the learning rate"):
        run(tmp_path, net, strict=False)


def test_of_an_empty_set_of_classes():
    images = Data().x[:4]
    sets = torch.tensor([[1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 0, 0]], dtype=torch.bool)
    with pytest.raises(ValueError, match=r"none of them empty, but got \(4, 3\) and 2 empty ones"):
        ExpectedGradCAM(Classifier(), num_samples=2)(images, images, sets)
