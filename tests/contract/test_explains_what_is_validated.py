"""It explains what is validated: weights, transfers and precision are those of the validation loop."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging
from scipy.stats import spearmanr
from torch.utils.data import DataLoader

from egcam_lightning import ExpectedGradCAM
from egcam_lightning.history.codec import round_maps
from tests.support.fits import Net, fit, make_callback, train_loader, val_loader
from tests.support.pictures import squares


class Witness(Callback):
    """Keeps the weights that the validation steps of each epoch saw."""

    def __init__(self):
        self.weights = {}

    def on_validation_batch_end(self, trainer, pl_module, *_):
        if not trainer.sanity_checking:
            self.weights[trainer.current_epoch] = {k: v.clone() for k, v in pl_module.state_dict().items()}


def scores(weights, dataset, rows):
    """What a network with these weights says of the explained classes, computed outside of any Trainer."""
    net = Net()
    net.load_state_dict(weights)
    net.eval()
    pictures, labels = dataset[rows]
    with torch.no_grad():
        return net(pictures.half().float()).gather(1, labels[:, None])[:, 0]


@pytest.mark.parametrize("first", [True, False], ids=["averaging first", "callback first"])
@pytest.mark.parametrize("averaging", [WeightAveraging, EMAWeightAveraging])
@pytest.mark.real("it averages no counters")
def test_averaged_weights_are_explained_whatever_the_order_of_the_callbacks(tmp_path, first, averaging):
    callback, witness = make_callback(), Witness()
    average = averaging() if averaging is WeightAveraging else EMAWeightAveraging(decay=0.5)
    order = [average, callback] if first else [callback, average]
    fit(tmp_path, *order, witness, max_epochs=3, val=val_loader(squares(16, seed=1)))
    for epoch in range(3):
        snapshot = next(s for s in callback.history if s.epoch == epoch and s.when == "epoch")
        expected = scores(witness.weights[epoch], squares(16, seed=1), [0, 4, 8, 12])
        assert torch.allclose(snapshot.score, expected, atol=1e-6)
    # and these are not the weights of the training
    differs = [not torch.equal(callback.history[-1].score, scores(weights, squares(16, seed=1), [0, 4, 8, 12]))
               for epoch, weights in witness.weights.items() if epoch < 2]  # fmt: skip
    assert all(differs)


class Moved(Callback):
    """Tells whether the weights in validation are those of the training before it."""

    def __init__(self):
        self.trained, self.same = None, []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.trained = pl_module.head[-1].weight.clone()

    def on_validation_batch_start(self, trainer, pl_module, *_):
        if not trainer.sanity_checking:
            self.same.append(torch.equal(self.trained, pl_module.head[-1].weight))


@pytest.mark.real("it averages no counters")
def test_the_averaged_weights_of_these_tests_differ_from_the_trained(tmp_path):
    moved = Moved()
    fit(tmp_path, WeightAveraging(), moved)
    assert moved.same
    assert not any(moved.same)


class Transferring(Net):
    """Normalises every batch on the device, and augments those of the training, as people do."""

    def __init__(self):
        super().__init__()
        self.seen = {"train": [], "val": []}

    def on_after_batch_transfer(self, batch, dataloader_idx):
        pictures, labels = batch
        pictures = (pictures - 0.25) * 2
        if self.trainer.training:
            pictures = pictures.flip(-1) + 100
        return pictures, labels

    def validation_step(self, batch, batch_idx):
        if not self.trainer.sanity_checking and self.trainer.state.fn == "fit":
            self.seen["val"].append(batch[0].clone())
        super().validation_step(batch, batch_idx)

    def training_step(self, batch, batch_idx):
        self.seen["train"].append(batch[0].clone())
        return super().training_step(batch, batch_idx)


def test_the_probe_passes_the_transfers_of_validation_and_the_baselines_those_of_training(tmp_path):
    callback = make_callback(num_images=16, num_baselines=8)
    _, net = fit(tmp_path, callback, net=Transferring(), max_epochs=1)
    validated = torch.cat(net.seen["val"]).cpu()
    assert torch.equal(callback.probe.images, validated.half())
    trained = torch.cat(net.seen["train"]).cpu().half()
    chosen = callback.baselines
    assert callback.history[-1].baselines == 1
    assert len(chosen) == 8
    assert all((trained == one).flatten(1).all(1).any() for one in chosen)


def test_a_probe_of_the_users_own_passes_the_transfers_of_validation_too(tmp_path):
    pictures, labels = squares(4, seed=3).tensors
    callback = make_callback(probe=(pictures, labels))
    fit(tmp_path, callback, net=Transferring(), max_epochs=1)
    assert torch.equal(callback.probe.images, ((pictures - 0.25) * 2).half())


def test_data_without_indices_give_the_first_batch_as_validation_saw_it(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(squares(16, seed=1))

    callback = make_callback()
    _, net = fit(tmp_path, callback, net=Transferring(), val=DataLoader(Stream(), 8), max_epochs=1)
    assert torch.equal(callback.probe.images, net.seen["val"][0][:4].cpu().half())


# ---- precision


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The weights of a network that has learnt something."""
    seed_everything(0, verbose=False)
    _, net = fit(tmp_path_factory.mktemp("trained"), net=Net(), max_epochs=8, train=train_loader(squares(128)))
    return net.state_dict()


def explained(tmp_path, trained, precision, **kwargs):
    seed_everything(0, verbose=False)
    net = Net()
    net.load_state_dict(trained)
    callback = make_callback(num_images=8, num_samples=16, num_baselines=8, metrics="default", target_layer="head.0")
    fit(tmp_path, callback, net=net, precision=precision, max_epochs=1, limit_train_batches=1, **kwargs)
    return callback.history


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_maps_are_float32_in_every_precision_and_close_to_those_of_float32(tmp_path, trained, precision):
    expected = explained(tmp_path, trained, "32-true")[0]
    found = explained(tmp_path, trained, precision)[0]
    for field in ("attribution", "score", "baseline_score", "completeness_gap", "noise_floor"):
        assert getattr(found, field).dtype == torch.float32
    for ours, theirs in zip(found.attribution, expected.attribution, strict=True):
        assert spearmanr(ours.flatten(), theirs.flatten()).statistic > 0.95
    assert found.metrics.keys() == expected.metrics.keys()


@pytest.mark.real("it has no autocast")
def test_mixed_precision_runs_the_model_as_validation_does(tmp_path, trained):
    """Not in float32, which a bare call in a hook would do."""
    types = []

    class Typed(Net):
        def forward(self, x):
            output = super().forward(x)
            if not self.training:
                types.append(output.dtype)
            return output

    callback = make_callback()
    fit(tmp_path, callback, net=Typed(), precision="bf16-mixed", max_epochs=1)
    assert set(types) == {torch.bfloat16}


def test_the_map_is_that_of_the_explainer_on_the_validated_weights(tmp_path):
    """End to end: the same map comes out of the library, given the probe, the baselines and the weights."""
    callback, witness = make_callback(num_samples=4, seed=3), Witness()
    fit(tmp_path, callback, witness, max_epochs=2)
    net = Net()
    net.load_state_dict(witness.weights[1])
    probe = callback.probe
    explainer = ExpectedGradCAM(net.eval(), num_samples=4, seed=3)
    assert callback.history[-1].baselines == 1
    baselines = callback.baselines.float()
    expected = explainer(probe.images.float(), baselines, probe.targets, image_index=list(range(4)))
    assert torch.allclose(callback.history[-1].attribution, round_maps(expected.attribution), rtol=1e-3, atol=1e-7)
