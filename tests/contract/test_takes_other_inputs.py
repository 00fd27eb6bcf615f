"""A module that takes more of the batch than its images, through a Trainer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from egcam_lightning import ExpectedGradCAM, ExpectedGradCAMCallback
from egcam_lightning.explain.isolation import isolated
from tests.support.fits import Net, fit, make_callback
from tests.support.pictures import QUADRANTS, squares


class WithTable(Net):
    """The row of a table (one more number that stands for a place) moves the logits, and gates the features."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(3, 8)
        self.place = nn.Embedding(5, QUADRANTS)

    def forward(self, x: Tensor, row: Tensor, place: Tensor) -> Tensor:
        gated = self.features(x) * self.gate(row)[:, :, None, None]
        return self.head(gated) + self.place(place)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return cross_entropy(self(batch["image"], batch["row"], batch["place"]), batch["label"])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.training_step(batch, batch_idx)


def loader(count: int, seed: int) -> DataLoader:
    pictures, labels = squares(count, seed).tensors
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, 3, generator=generator)
    places = torch.randint(0, 5, (count,), generator=generator)
    keys = ("image", "place", "row", "label")
    samples = [dict(zip(keys, sample, strict=True)) for sample in zip(pictures, places, rows, labels, strict=True)]
    return DataLoader(samples, 8)


def run(tmp_path: Any, callback: ExpectedGradCAMCallback, **kwargs: Any) -> tuple[Any, Any]:
    return fit(tmp_path, callback, net=WithTable(), train=loader(32, 0), val=loader(16, 1), **kwargs)


def test_the_other_inputs_are_those_of_each_image(tmp_path: Any) -> None:
    callback = make_callback(
        additional_keys=["row", "place"], metrics=["infidelity", "insertion_auc", "max_sensitivity"], num_samples=4
    )
    _, net = run(tmp_path, callback)
    probe, snapshot = callback.probe, callback.history[-1]
    assert probe is not None
    assert [tuple(other.shape) for other in probe.others] == [(4, 3), (4,)]
    labels = torch.stack([sample["label"] for sample in loader(16, 1).dataset])[[0, 4, 8, 12]]
    assert torch.equal(probe.labels, labels), "an integer input is no label"
    with torch.no_grad(), isolated(net):
        rows = torch.arange(4)
        expected = net(*probe.inputs(rows, net.device)).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(snapshot.score, expected)
    assert {"infidelity", "insertion_auc", "max_sensitivity"} <= set(snapshot.metrics)


def test_a_metric_sees_each_image_with_its_own(tmp_path: Any) -> None:
    """Metrics repeat images: the score of a repeated image is that with its own inputs, whatever its place."""
    callback = make_callback(additional_keys=["row", "place"], metrics=["infidelity"])
    asked: list[tuple[Tensor, Tensor]] = []
    bind = ExpectedGradCAM.bind

    def listen(self: ExpectedGradCAM, pictures: Tensor, target: Tensor, *others: Tensor) -> Any:
        score = bind(self, pictures, target, *others)

        def scores(points: Tensor, rows: Tensor, probability: bool) -> Tensor:
            asked.append((target[rows], others[1][rows]))
            return score(points, rows, probability)

        return scores

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ExpectedGradCAM, "bind", listen)
        run(tmp_path, callback, max_epochs=1)
    probe = callback.probe
    assert probe is not None
    assert probe.labels is not None
    known = set(zip(probe.labels.tolist(), probe.others[1].tolist(), strict=True))
    assert asked
    for target, place in asked:
        assert set(zip(target.tolist(), place.tolist(), strict=True)) <= known


def test_they_survive_a_resume_and_tell_runs_apart(tmp_path: Any) -> None:
    path = str(tmp_path / "one.ckpt")
    callback = make_callback(additional_keys=["row", "place"])
    trainer, _ = run(tmp_path, callback, max_epochs=1)
    trainer.save_checkpoint(path)
    again = make_callback(additional_keys=["row", "place"])
    run(tmp_path, again, ckpt_path=path)
    assert [s.epoch for s in again.history.snapshots] == [0, 0, 1]
    first, second = callback.probe, again.probe
    assert first is not None
    assert second is not None
    assert first.fingerprint == second.fingerprint

    def with_one_place(net: nn.Module, x: Tensor, row: Tensor) -> Tensor:
        return net(x, row, torch.zeros(len(x), dtype=torch.long, device=x.device))

    fewer = make_callback(additional_keys=["row"], forward_fn=with_one_place)
    with pytest.warns(UserWarning, match=r"explanations are of images of shape .* The history starts afresh"):
        run(tmp_path, fewer, ckpt_path=path)


def test_a_module_that_wants_more_says_how_to_give_it(tmp_path: Any) -> None:
    with pytest.raises(MisconfigurationException, match=r"missing 2 required .* `additional_keys`"):
        run(tmp_path, make_callback())


def test_a_key_that_is_not_there_is_refused_with_what_there_is(tmp_path: Any) -> None:
    message = r"under 'rows' of `additional_keys`, but found NoneType. .*row: torch.float32"
    with pytest.raises(ValueError, match=message):
        run(tmp_path, make_callback(additional_keys=["rows"]))
