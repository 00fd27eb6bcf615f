"""What a torchmetrics metric promises: batches and ranks add up, bounds, plots, clones, collections."""

from __future__ import annotations

import multiprocessing
import time
from functools import partial

import pytest
import torch
from torchmetrics import Metric, MetricCollection

import egcam_lightning.metrics as public
from egcam_lightning.metrics import (
    CompletenessGap,
    Complexity,
    DeletionAUC,
    ExplanationConsensus,
    ExplanationDrift,
    ExplanationRecurrence,
    Infidelity,
    InsertionAUC,
    MaxSensitivity,
    PointingGame,
    RelevanceMass,
    Sparseness,
)
from egcam_lightning.metrics import functional as F
from egcam_lightning.metrics.functional import class_scores

NAMES = [
    "CompletenessGap",
    "Complexity",
    "DeletionAUC",
    "ExplanationConsensus",
    "ExplanationDrift",
    "ExplanationRecurrence",
    "Infidelity",
    "InsertionAUC",
    "MaxSensitivity",
    "PointingGame",
    "RelevanceMass",
    "Sparseness",
]


def grey(images, target):
    return images.mean(1).square()


def metric_of(name, world):
    """The metric, and the arguments of its ``update`` for all five images."""
    logit, probability = class_scores(world.model), class_scores(world.model, softmax=True)
    seen = (world.images, world.maps, world.target)
    return {
        "CompletenessGap": (CompletenessGap(), (world.maps, torch.arange(5.0), torch.full((5,), 0.3))),
        "Complexity": (Complexity(), (world.maps,)),
        "DeletionAUC": (DeletionAUC(probability), seen),
        "ExplanationConsensus": (ExplanationConsensus(), (world.maps, world.target)),
        "ExplanationRecurrence": (ExplanationRecurrence(), (world.maps, world.target)),
        "ExplanationDrift": (ExplanationDrift(), (world.maps, world.other_maps)),
        "Infidelity": (Infidelity(logit), seen),
        "InsertionAUC": (InsertionAUC(probability), seen),
        "MaxSensitivity": (MaxSensitivity(grey), (world.images, grey(world.images, None), world.target)),
        "PointingGame": (PointingGame(), (world.maps, world.masks)),
        "RelevanceMass": (RelevanceMass(), (world.maps, world.masks)),
        "Sparseness": (Sparseness(), (world.maps,)),
    }[name]


def test_these_are_all_of_them():
    assert sorted(public.__all__) == NAMES
    assert all(issubclass(getattr(public, name), Metric) for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_split_batches_give_the_value_of_the_whole(name, world):
    metric, arguments = metric_of(name, world)
    metric.update(*arguments)
    whole = metric.compute()
    assert whole.isfinite()
    for parts in ([1, 1, 1, 1, 1], [2, 3]):
        metric.reset()
        for part in torch.arange(5).split(parts):
            metric.update(*(argument[part] for argument in arguments))
        torch.testing.assert_close(metric.compute(), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_images_does_not_matter(name, world):
    metric, arguments = metric_of(name, world)
    value = metric(*arguments)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(metric(*(argument[order] for argument in arguments)), value, rtol=1e-4, atol=1e-5)


def test_the_mean_is_that_of_the_function(world):
    for name, function in {
        "Complexity": F.complexity,
        "Sparseness": F.sparseness,
        "RelevanceMass": F.relevance_mass,
        "PointingGame": F.pointing_game,
        "ExplanationDrift": F.rank_drift,
        "InsertionAUC": partial(F.insertion_auc, class_scores(world.model, softmax=True)),
        "DeletionAUC": partial(F.deletion_auc, class_scores(world.model, softmax=True)),
        "Infidelity": partial(F.infidelity, class_scores(world.model)),
        "MaxSensitivity": partial(F.max_sensitivity, grey),
    }.items():
        metric, arguments = metric_of(name, world)
        torch.testing.assert_close(metric(*arguments), function(*arguments).mean(), rtol=1e-5, atol=1e-6)


def test_completeness_is_pooled_not_averaged():
    metric = CompletenessGap()
    metric.update(torch.ones(2, 1, 1), torch.tensor([1.5, 101.0]), torch.tensor([1.499, 0.0]))
    assert float(metric.compute()) == pytest.approx((0.999 + 100) / 101.001, rel=1e-4)


@pytest.mark.parametrize("distance", ["rank", "ssim", "top_iou", "centre"])
def test_drift_takes_each_distance(distance, world):
    function = {"rank": F.rank_drift, "ssim": F.ssim_drift, "top_iou": F.top_iou_drift, "centre": F.centre_shift}
    a, b = world.fine_maps, world.fine_maps.flip(1)
    torch.testing.assert_close(ExplanationDrift(distance)(a, b), function[distance](a, b).mean())


def test_drift_without_a_value_on_a_small_grid(world):
    metric = ExplanationDrift("ssim")
    assert metric(world.maps, world.other_maps).isnan()
    assert int(metric.skipped) == 5
    with pytest.raises(ValueError, match="must be one of 'rank'"):
        ExplanationDrift("cosine")


@pytest.mark.parametrize("name", NAMES)
def test_a_broken_map_is_left_out_and_counted(name, world):
    metric, arguments = metric_of(name, world)
    at = {"InsertionAUC": 1, "DeletionAUC": 1, "Infidelity": 1, "MaxSensitivity": 1}.get(name, 0)
    metric.update(*(argument[1:] for argument in arguments))
    expected = metric.compute()
    broken = list(arguments)
    broken[at] = broken[at].clone()
    broken[at][0, 1, 1] = torch.nan
    metric.reset()
    metric.update(*broken)
    torch.testing.assert_close(metric.compute(), expected, rtol=1e-4, atol=1e-5)
    assert int(metric.skipped) == 1
    # Nothing but broken maps: NaN, and every image counted.
    metric.reset()
    broken[at] = torch.full_like(broken[at], torch.nan)
    metric.update(*broken)
    assert metric.compute().isnan()
    assert int(metric.skipped) == 5


def test_infidelity_counts_images_that_no_block_changes(world):
    metric = Infidelity(lambda images, target: torch.where(target == 1, 3.0, images.mean((1, 2, 3))))
    metric.update(world.images, world.maps, world.target)
    assert int(metric.unaffected) == 2
    assert int(metric.skipped) == 0


def test_consensus_of_one_class_is_nan_until_another_comes(world):
    metric = ExplanationConsensus()
    metric.update(world.maps[:1], world.target[:1])
    assert metric.compute().isnan()
    metric.update(world.maps[1:], world.target[1:])
    torch.testing.assert_close(metric.compute(), F.consensus(world.maps, world.target), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="256 cells after 16"):
        metric.update(world.fine_maps, world.target)


@pytest.mark.parametrize("name", ["Infidelity", "InsertionAUC", "DeletionAUC", "MaxSensitivity"])
def test_a_function_can_be_set_later_and_is_asked_for_until_then(name, world):
    kind, field = getattr(public, name), "explain_fn" if name == "MaxSensitivity" else "score_fn"
    metric, arguments = kind(), metric_of(name, world)[1]
    with pytest.raises(ValueError, match=f"{name} needs a {field}"):
        metric.update(*arguments)
    complete = metric_of(name, world)[0]
    setattr(metric, field, getattr(complete, field))
    assert torch.equal(metric(*arguments), complete(*arguments))


@pytest.mark.parametrize("name", NAMES)
def test_direction_bounds_clone_and_plot(name, world):
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    metric, arguments = metric_of(name, world)
    assert isinstance(metric.higher_is_better, bool)
    assert isinstance(metric.is_differentiable, bool)
    assert metric.full_state_update is False
    values = [metric(*arguments), metric.clone()(*arguments)]
    assert torch.equal(*values)
    assert metric.plot_lower_bound <= float(values[0])
    assert metric.plot_upper_bound is None or float(values[0]) <= metric.plot_upper_bound
    figure, axis = metric.plot(values)
    assert axis.lines
    pyplot.close(figure)


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_claims_to_be_differentiable_where_a_gradient_reaches_the_maps_and_only_there(name, world):
    metric, arguments = metric_of(name, world)
    at = 1 if name in ("InsertionAUC", "DeletionAUC", "Infidelity", "MaxSensitivity") else 0
    arguments = list(arguments)
    maps = arguments[at] = arguments[at].clone().requires_grad_()
    value = metric(*arguments)
    assert value.requires_grad == metric.is_differentiable
    if metric.is_differentiable:
        (gradient,) = torch.autograd.grad(value, maps)
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


def test_a_collection_hands_each_metric_what_it_takes(world):
    probability = class_scores(world.model, softmax=True)
    names = ["Infidelity", "Complexity", "RelevanceMass", "ExplanationConsensus"]
    collection = MetricCollection([metric_of(name, world)[0] for name in names] + [InsertionAUC(probability)])
    collection.update(images=world.images, attribution=world.maps, target=world.target, mask=world.masks)
    for name, value in collection.compute().items():
        metric, arguments = metric_of(name, world)
        torch.testing.assert_close(value, metric(*arguments))


def _rank(rank, shares, world, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    values = {}
    for name in NAMES:
        metric, arguments = metric_of(name, world)
        if len(shares[rank]):
            metric.update(*(argument[shares[rank]] for argument in arguments))
        values[name] = metric.compute()
    torch.save(values, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("shares", [([0, 2, 4], [1, 3]), ([0, 1, 2, 3, 4], [])], ids=["uneven", "one rank idle"])
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
@pytest.mark.cpu("gloo and forked processes")
def test_two_ranks_give_the_value_of_one(shares, world, tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_rank, args=(rank, shares, world, tmp_path), daemon=True) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + 60
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))
    hung = [worker for worker in workers if worker.is_alive()]
    for worker in hung:
        worker.kill()
    assert not hung
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for name in NAMES:
        metric, arguments = metric_of(name, world)
        expected = metric(*arguments)
        for values in ranks:
            torch.testing.assert_close(values[name], expected, rtol=1e-4, atol=1e-5)
