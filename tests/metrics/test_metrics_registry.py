"""One table says of every number what it is; a metric of the user's own is given what it asks for."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from egcam_lightning.metrics.evaluate import Evidence, evaluate
from egcam_lightning.metrics.registry import CHANGE, DEFAULT_METRICS, METRICS, NUMBERS, OWN, build_metrics, needs_masks


class Asks(Metric):
    """Sums what its functions give for the images themselves."""

    def __init__(self, **attributes):
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")
        self.__dict__.update(attributes)

    def update(self, images: Tensor, target: Tensor) -> None:
        function = self.score_fn if hasattr(self, "score_fn") else self.explain_fn
        self.seen = images.dtype
        self.total += function(images, target).sum()
        self.count += len(images)

    def compute(self) -> Tensor:
        return self.total / self.count


def evidence(images: Tensor) -> Evidence:
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    target = torch.tensor([2, 0])

    def score(points: Tensor, rows: Tensor, probability: bool) -> Tensor:
        logits = net(points.float())
        values = logits.softmax(1) if probability else logits
        return values.gather(1, target[rows][:, None])[:, 0].detach()

    maps = torch.rand(2, 4, 4)
    return Evidence(
        images=images, attribution=maps, target=target, scores=torch.zeros(2),
        whole={"attribution": maps, "target": target}, score_fn=score, explain_fn=lambda points, rows: maps[rows] + 1,
    )  # fmt: skip


def test_a_users_own_metric_may_ask_for_scores_probabilities_and_explanations():
    shown = evidence(torch.randint(0, 255, (2, 3, 4, 4), dtype=torch.uint8))
    metrics = {
        "logit": Asks(score_fn=None),
        "probability": Asks(score_fn=None, uses_probability=True),
        "maps": Asks(explain_fn=None, takes_input_type=True),
        "mine": Asks(score_fn=lambda images, target: target.float()),
    }
    values, failures = evaluate(metrics, shown, lambda work: work())
    assert not failures
    rows = torch.arange(2)
    torch.testing.assert_close(values["logit"], float(shown.score_fn(shown.images, rows, False).mean()))
    torch.testing.assert_close(values["probability"], float(shown.score_fn(shown.images, rows, True).mean()))
    torch.testing.assert_close(values["maps"], float((shown.attribution + 1).sum() / 2))
    assert values["mine"] == 1.0, "a function of the user's own stays, and is given targets"
    assert (metrics["logit"].seen, metrics["maps"].seen) == (torch.float32, torch.uint8)
    assert metrics["logit"].score_fn is metrics["maps"].explain_fn is None, "nothing of the model is kept"


def test_a_metric_that_fails_is_left_out_and_told_of():
    values, failures = evaluate(
        {"bad": Asks(), "good": Asks(score_fn=None)}, evidence(torch.rand(2, 3, 4, 4)), lambda w: w()
    )
    assert values.keys() == {"good"}
    assert isinstance(failures["bad"], AttributeError)


def test_the_table_names_every_number_once():
    assert METRICS.keys() | set(OWN) == NUMBERS.keys()
    assert not METRICS.keys() & set(OWN)
    assert set(DEFAULT_METRICS) < METRICS.keys()
    assert not any(needs_masks(METRICS[key]) for key in DEFAULT_METRICS)
    assert set(build_metrics("default", masks=True)) == {*DEFAULT_METRICS, "relevance_mass", "pointing_game"}
    assert {key for key in NUMBERS if key.startswith("drift/")} - set(CHANGE) == {"drift/noise_floor"}
    assert {key for key, kind in METRICS.items() if getattr(kind, "uses_probability", False)} == {
        "insertion_auc",
        "deletion_auc",
    }
