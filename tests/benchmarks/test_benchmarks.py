"""What an explanation costs, against peers and against the passes that it cannot do without.

``pytest -m benchmark tests/benchmarks`` prints one table, and fails where a figure misses what it is to reach.
"""

from __future__ import annotations

import copy
import multiprocessing
import statistics
import subprocess
import sys

import pytest
import torch
import torchvision
from captum.attr import LayerGradientShap
from pytorch_grad_cam import AblationCAM, GradCAM, ScoreCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from egcam_lightning import BaselineReservoir, ExpectedGradCAM, Perturbation
from egcam_lightning.data.batch import find_images, get
from egcam_lightning.explain.chunking import images_at_once
from egcam_lightning.metrics import DeletionAUC, Infidelity, InsertionAUC
from tests.benchmarks.measure import RUNS, added_memory, device, in_turn, seconds

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]

IMAGES, BASELINES, DRAWS = 8, 16, 32

# The layer, and the part of the network behind it.
NETWORKS = {
    "resnet50": ("layer4", lambda m: lambda a: m.fc(m.avgpool(a).flatten(1))),
    "convnext_tiny": ("features", lambda m: lambda a: m.classifier(m.avgpool(a))),
    "vgg16": ("features.29", lambda m: lambda a: m.classifier(m.avgpool(m.features[30](a)).flatten(1))),
    "vit_b_16": (
        "encoder.layers.encoder_layer_10",
        lambda m: lambda a: m.heads(m.encoder.ln(m.encoder.layers.encoder_layer_11(a))[:, 0]),
    ),
}


@pytest.fixture(scope="module")
def networks():
    made = {}

    def get(name):
        if name not in made:
            torch.manual_seed(0)
            made[name] = getattr(torchvision.models, name)(weights=None).eval().to(device())
            if name == "vit_b_16":
                torch.nn.init.normal_(made[name].heads.head.weight, std=0.02)
        return made[name]

    return get


def images(count, seed=0):
    return torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(seed)).to(device())


def targets(count):
    return torch.arange(count, device=device())


def explanation(model, layer, count=IMAGES, baselines=BASELINES, draws=DRAWS, form=None, **kwargs):
    explainer = ExpectedGradCAM(model, layer, num_samples=draws, **kwargs)
    x, d, t = images(count).to(**form or {}), images(baselines, 1).to(**form or {}), targets(count)
    explainer.find(x)
    return lambda: explainer(x, d, t)


def backward_passes(head, activation, draws):
    """Forward and backward through the part behind the layer, for every draw of every image, and nothing else."""
    chunk = max(1, 2**24 // activation[0].numel())

    def work():
        points = activation.repeat(draws, *[1] * (activation.ndim - 1))
        for part in points.split(chunk):
            leaf = part.detach().requires_grad_()
            torch.autograd.grad(head(leaf)[:, 0].sum(), leaf)

    return work


def forward_passes(model, x):
    def work():
        with torch.no_grad():
            for part in x.split(images_at_once(x)):
                model(part)

    return work


def captured(model, layer, x):
    seen = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _m, _i, out: seen.append(out.detach().clone()))
    with torch.no_grad():
        model(x)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize(("name", "bound"), [("resnet50", 1.0), ("convnext_tiny", 1.0), ("vgg16", 1.1)])
def test_expected_grad_cam_costs_what_plain_grad_cam_costs(networks, table, name, bound):
    model, (layer, _) = networks(name), NETWORKS[name]
    x = images(IMAGES)
    twin = copy.deepcopy(model)  # the peer's hooks stay on its model and would run in our passes too
    peer = GradCAM(model=twin, target_layers=[twin.get_submodule(layer)])
    wanted = [ClassifierOutputTarget(int(t)) for t in targets(IMAGES)]
    ours, theirs = in_turn(explanation(model, layer), lambda: peer(input_tensor=x, targets=wanted))
    table.add(
        "time, of pytorch-grad-cam's GradCAM", f"{name} {layer}, 8 images, 16 baselines, 32 draws", ours / theirs, bound
    )


def test_it_is_a_fraction_of_gradient_shap_at_the_layer(networks, table):
    model, (layer, _) = networks("resnet50"), NETWORKS["resnet50"]
    x, d, t = images(IMAGES), images(BASELINES, 1), targets(IMAGES)
    peer = LayerGradientShap(model, model.get_submodule(layer), multiply_by_inputs=True)
    ours = explanation(model, layer, draws=16)
    (fast,) = in_turn(ours)
    little = statistics.median(added_memory(ours) for _ in range(RUNS))
    slow: list[float] = []
    much = added_memory(lambda: slow.append(seconds(lambda: peer.attribute(x, d, n_samples=16, target=t))))
    work = "resnet50 layer4, 8 images, 16 baselines, 16 draws"
    table.add("times faster than captum's LayerGradientShap", work, slow[0] / fast, 40, at_least=True)
    table.add("added peak memory, of LayerGradientShap's", work, little / much, 0.1)


@pytest.mark.parametrize("name", list(NETWORKS))
@pytest.mark.parametrize("space", ["activation", "input"])
def test_it_is_near_the_passes_that_it_cannot_do_without(networks, table, name, space):
    model, (layer, behind) = networks(name), NETWORKS[name]
    draws = DRAWS if space == "activation" else 4  # the ratio is the same; a whole network a draw takes long
    x = torch.cat([images(IMAGES), images(BASELINES, 1)])
    if space == "input":
        x = torch.cat([x, images(IMAGES * draws, 2)])
    before = forward_passes(model, x)
    after = backward_passes(behind(model), captured(model, layer, images(IMAGES)), draws)
    ours = explanation(model, layer, draws=draws, perturbation=Perturbation(space=space))

    def floor():
        before()
        after()

    measured, least = in_turn(ours, floor)
    table.add(
        "time, of the passes that are needed", f"{name} {layer}, {space} space, {draws} draws", measured / least, 1.15
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, whose convolutions have kernels for it")
@pytest.mark.parametrize("form", [{"memory_format": torch.channels_last}, {"dtype": torch.bfloat16}], ids=str)
def test_it_is_near_the_passes_in_other_formats(networks, table, form):
    layer, behind = NETWORKS["resnet50"]
    model = copy.deepcopy(networks("resnet50")).to(**form)
    x = torch.cat([images(IMAGES), images(BASELINES, 1)]).to(**form)
    before = forward_passes(model, x)
    after = backward_passes(behind(model), captured(model, layer, x[:IMAGES]), DRAWS)

    def floor():
        before()
        after()

    measured, least = in_turn(explanation(model, layer, form=form), floor)
    table.add("time, of the passes that are needed", f"resnet50 {layer}, {form}, 32 draws", measured / least, 1.15)


@pytest.mark.parametrize(
    ("name", "layer", "behind"),
    [
        ("resnet50", "layer3", lambda m: lambda a: m.fc(m.avgpool(m.layer4(a)).flatten(1))),
        (
            "vit_b_16",
            "encoder.layers.encoder_layer_5",
            lambda m: lambda a: m.heads(m.encoder.ln(m.encoder.layers[6:](a))[:, 0]),
        ),
    ],
)
def test_an_earlier_layer_costs_the_passes_behind_it(networks, table, name, layer, behind):
    model = networks(name)
    before = forward_passes(model, torch.cat([images(IMAGES), images(BASELINES, 1)]))
    after = backward_passes(behind(model), captured(model, layer, images(IMAGES)), DRAWS)

    def floor():
        before()
        after()

    measured, least = in_turn(explanation(model, layer), floor)
    table.add(
        "time, of the passes that are needed", f"{name} {layer}, activation space, 32 draws", measured / least, 1.15
    )


def test_the_default_layers_cost_the_passes_behind_them(networks, table):
    model, baselines = networks("resnet50"), 8
    x = images(IMAGES)
    assert ExpectedGradCAM(model).find(x) == "layer3+layer4"
    before = forward_passes(model, torch.cat([x, images(baselines, 1)]))
    behind = lambda a: model.fc(model.avgpool(a).flatten(1))  # noqa: E731
    early = backward_passes(lambda a: behind(model.layer4(a)), captured(model, "layer3", x), DRAWS)
    late = backward_passes(behind, captured(model, "layer4", x), 1)  # linear: the gradient is the same everywhere

    def floor():
        before()
        early()
        late()

    measured, least = in_turn(explanation(model, "auto", baselines=baselines), floor)
    work = "resnet50, the default's two layers, 8 images and baselines, 32 draws"
    table.add("time, of the passes that are needed", work, measured / least, 1.15)


@pytest.mark.parametrize("peer", [ScoreCAM, AblationCAM])
def test_it_is_a_fraction_of_the_cams_that_ask_the_network_of_every_channel(networks, table, peer):
    model, x = networks("resnet50"), images(1)
    twin = copy.deepcopy(model)
    cam = peer(model=twin, target_layers=[twin.layer4])
    cam.batch_size = images_at_once(x)
    (ours,) = in_turn(explanation(model, "auto", count=1, baselines=8))
    theirs = seconds(lambda: cam(input_tensor=x, targets=[ClassifierOutputTarget(0)]))
    work = "resnet50, one image; ours with default arguments and 8 baselines, theirs at layer4, once"
    table.add(f"times faster than pytorch-grad-cam's {peer.__name__}", work, theirs / ours, 10, at_least=True)


def test_a_default_explanation_and_its_metrics_cost_no_more_than_at_the_last_layer_with_more_steps(networks, table):
    model, x, t = networks("resnet50"), images(8), targets(8)
    explainer, at_last = ExpectedGradCAM(model), ExpectedGradCAM(model, "last")
    for each in (explainer, at_last):
        each.find(x)

    def score(pictures, classes):
        with torch.no_grad():
            return model(pictures).softmax(1).gather(1, classes[:, None])[:, 0]

    def snapshot(explainer, baselines, steps):
        metrics = InsertionAUC(score, steps), DeletionAUC(score, steps), Infidelity(score, steps)
        reference = images(baselines, 1)

        def work():
            found = explainer(x, reference, t)
            for metric in metrics:
                metric.update(x, found.attribution, t)

        return work

    ours, before = in_turn(snapshot(explainer, 8, 12), snapshot(at_last, 32, 16), runs=3)
    work = "resnet50, 8 images; of the last layer's with 32 baselines and 16 steps a metric, median of three"
    table.add("time of a default explanation and its metrics", work, ours / before, 1.0)


def _memory_of_ours_and_of_one_chunk():
    torch.set_num_threads(2)
    model = torchvision.models.resnet50(weights=None).eval().to(device())
    ours, passes = explanation(model, "layer4"), forward_passes(model, images(images_at_once(images(1))))
    ours()
    passes()
    return [(added_memory(ours), added_memory(passes)) for _ in range(RUNS)]


def test_memory_is_that_of_a_forward_pass(table):
    # In a process of its own: here the heap is in pieces, some of which either may find and reuse.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        measured = pool.apply(_memory_of_ours_and_of_one_chunk)
    ours, passes = (statistics.median(each) for each in zip(*measured, strict=True))
    table.add("added peak memory, of a forward pass of one chunk", "resnet50 layer4", ours / passes, 1.25)


def test_time_is_linear_in_images(networks, table):
    model, (layer, _) = networks("resnet50"), NETWORKS["resnet50"]
    few, many = in_turn(explanation(model, layer, 4, 4, 8), explanation(model, layer, 64, 4, 8))
    table.add(
        "time of an explanation of 64 images, of 16 of 4",
        "resnet50 layer4, 4 baselines, 8 draws",
        many / few / 16,
        1.15,
    )


def test_time_is_linear_in_baselines(networks, table):
    model, (layer, _) = networks("resnet50"), NETWORKS["resnet50"]
    few, many = in_turn(explanation(model, layer, 8, 4, 32), explanation(model, layer, 8, 128, 32))
    # 136 passes where there were 12.
    table.add(
        "time with 128 baselines, of 4, a pass", "resnet50 layer4, 8 images, 32 draws", many / few / (136 / 12), 1.15
    )


@pytest.mark.parametrize("name", ["resnet50", "convnext_tiny"])
def test_time_hardly_grows_with_draws(networks, table, name):
    model, (layer, _) = networks(name), NETWORKS[name]
    small, large = in_turn(explanation(model, layer, 8, 16, 8), explanation(model, layer, 8, 16, 512))
    table.add("time of 512 draws, of 8", f"{name} {layer}, 8 images, 16 baselines", large / small, 2.0)


def test_the_reservoir_costs_a_training_step_next_to_nothing(table):
    model = torchvision.models.resnet18(weights=None).to(device())
    batch = torch.rand(256, 3, 224, 224, device=device())
    small = batch[:8]

    def step():
        model.zero_grad(set_to_none=True)
        model(small).square().mean().backward()

    (eighth,) = in_turn(step)
    reservoir = BaselineReservoir(32)
    for _ in range(8):
        reservoir.update(batch)
    updates = 200
    passing = batch, torch.zeros(256, dtype=torch.int64)

    def stream():  # what the callback does with every training batch of the first epoch
        for _ in range(updates):
            reservoir.update(get(passing, find_images(passing, None)))

    (taken,) = in_turn(stream)
    # A step of 256 images takes at least 32 times one of 8: the figure is an upper bound.
    table.add(
        "finding the images and the reservoir, of a training step's time",
        "resnet18, batch 256 of 3x224x224, mean of 200 batches",
        taken / updates / (eighth * 32),
        0.001,
    )


def test_import_is_little_more_than_lightnings(table):
    def importing(name):
        return lambda: subprocess.run([sys.executable, "-c", f"import {name}"], check=True)

    ours, lightnings = in_turn(importing("egcam_lightning"), importing("lightning.pytorch"), runs=7)
    table.add("time of import egcam_lightning, of lightning.pytorch", "a fresh process", ours / lightnings, 1.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_reservoir_never_waits_for_the_device():
    reservoir = BaselineReservoir(32)
    batch = torch.rand(64, 3, 64, 64, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(64):
            reservoir.update(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_default_snapshot_is_one_percent_of_an_epoch(table, tmp_path):
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.loggers import CSVLogger
    from torch.nn.functional import cross_entropy
    from torch.utils.data import DataLoader, TensorDataset

    from egcam_lightning import ExpectedGradCAMCallback

    class ResNet18(LightningModule):
        def __init__(self):
            super().__init__()
            self.model = torchvision.models.resnet18(num_classes=10)

        def forward(self, x):
            return self.model(x)

        def training_step(self, batch, _):
            return cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch, _):
            self(batch[0])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.01)

    data = TensorDataset(torch.rand(1280, 3, 32, 32), torch.arange(1280) % 10)
    epochs, batches = 3, 10

    def share(run):
        """What a snapshot of one fit takes, of the time of an epoch of 50,000 images: 391 batches."""
        callback = ExpectedGradCAMCallback(max_overhead=None, strict=True)
        trainer = Trainer(
            max_epochs=epochs,
            callbacks=[callback],
            logger=CSVLogger(tmp_path / str(run)),
            accelerator="auto",
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        loaders = DataLoader(data, 128), DataLoader(data, 128, sampler=range(128))
        took = seconds(lambda: trainer.fit(ResNet18(), *loaders))
        overhead = callback.overhead_seconds
        return overhead / len(callback.history) / ((took - overhead) / (epochs * batches) * 391)

    share("warm-up")
    work = "resnet18, 16 images of 32x32, pictures and page; the epoch by calculation, 391 times the mean of 30 batches"
    table.add("one default snapshot, of an epoch's time", work, statistics.median(map(share, range(RUNS))), 0.01)
