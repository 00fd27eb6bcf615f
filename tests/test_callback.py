"""The callback through a real Trainer: what it takes, logs, keeps and refuses."""

from __future__ import annotations

import csv
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, seed_everything
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, TensorDataset

import egcam_lightning.training.fit
from egcam_lightning import ExpectedGradCAMCallback, History
from egcam_lightning.sinks import register_sink
from tests.support import fits
from tests.support.wandb_reader import finished_records, history_rows


class Quadrants(Dataset):
    """Noise with a bright square in the quadrant of its class, and, which no other data have, the square's mask."""

    classes = ("top left", "top right", "bottom left", "bottom right")

    def __init__(self, size: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(0, 4, (size,), generator=generator)
        self.images = torch.randn(size, 3, 32, 32, generator=generator) * 0.3
        self.masks = torch.zeros(size, 32, 32)
        for image, mask, label in zip(self.images, self.masks, self.labels.tolist(), strict=True):
            row, column = divmod(label, 2)
            window = (slice(16 * row + 4, 16 * row + 12), slice(16 * column + 4, 16 * column + 12))
            image[(slice(None), *window)] += 2.0
            mask[window] = 1

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        return {"image": self.images[index], "label": self.labels[index], "mask": self.masks[index]}


class Net(LightningModule):
    """A network of its own, because it takes mappings of larger images, and learns them well in a few epochs."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(True),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
        )
        # Where the square lies decides the class, so the head must see positions.
        self.head = nn.Sequential(nn.ReLU(True), nn.AvgPool2d(4), nn.Flatten(), nn.Dropout(0.1), nn.Linear(256, 4))

    def forward(self, images):
        return self.head(self.features(images))

    def training_step(self, batch, _):
        return cross_entropy(self(batch["image"]), batch["label"])

    def validation_step(self, batch, _):
        self.log("accuracy", (self(batch["image"]).argmax(1) == batch["label"]).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)


def fit(tmp_path, *callbacks, epochs=3, net=None, val=None, progress=False, **kwargs):
    seed_everything(0, verbose=False)
    return fits.fit(
        tmp_path, *callbacks, net=net or Net(), train=DataLoader(Quadrants(128, 0), 32, shuffle=True),
        val=val or DataLoader(Quadrants(32, 1), 16), max_epochs=epochs, enable_progress_bar=progress, **kwargs,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One ordinary run, with everything on."""
    path = tmp_path_factory.mktemp("run")
    callback = ExpectedGradCAMCallback(
        num_images=8, num_samples=16, num_baselines=16, masks_key="mask", max_overhead=None
    )
    trainer, net = fit(path, callback, epochs=4)
    return callback, trainer, net


def test_training_is_bit_identical_with_and_without(run, tmp_path):
    _, _, net = run
    _, alone = fit(tmp_path, epochs=4)
    for (name, with_it), without in zip(net.state_dict().items(), alone.state_dict().values(), strict=True):
        assert torch.equal(with_it, without), name


def test_there_is_a_snapshot_before_training_and_one_after_every_epoch(run):
    callback, _, _ = run
    assert [(s.epoch, s.when) for s in callback.history] == [(0, "start"), *((n, "epoch") for n in range(4))]
    assert [s.step for s in callback.history] == [0, 3, 7, 11, 15]


def test_the_probe_is_evenly_spaced_and_keeps_its_labels_as_targets(run):
    callback, _, _ = run
    data = Quadrants(32, 1)
    expected = data.labels[::4]
    assert torch.equal(callback.history.probe.labels, expected)
    assert all(torch.equal(snapshot.target, expected) for snapshot in callback.history)
    assert callback.history.probe.class_names == Quadrants.classes
    assert callback.history.probe.masks.float().mean() == pytest.approx(64 / 1024)


def test_drift_is_never_taken_across_the_change_of_baselines(run):
    callback, _, _ = run
    start, first, second, third, _ = callback.history
    assert start.baselines != first.baselines == second.baselines
    assert first.drift_previous is None
    assert "drift/previous" not in first.metrics
    assert second.drift_previous is not None
    assert torch.equal(second.drift_previous, second.drift_reference)
    assert not torch.equal(third.drift_previous, third.drift_reference)


def test_once_it_has_learnt_the_model_looks_at_the_square(run):
    """End to end: the maps of a model that has learnt the task lie on the object, in their right places."""
    callback, trainer, _ = run
    assert trainer.callback_metrics["accuracy"] > 0.9
    uniform = callback.history.probe.masks.float().mean().item()
    assert callback.history[-1].metrics["relevance_mass"] > 2 * uniform


def test_values_logged_are_those_of_the_history_at_lightnings_own_steps(run):
    callback, trainer, _ = run
    with open(f"{trainer.logger.log_dir}/metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["egcam/infidelity"]]
    assert len(rows) == len(callback.history)
    for row, snapshot in zip(rows, callback.history, strict=True):
        assert int(row["step"]) == snapshot.step
        for key, value in snapshot.metrics.items():
            assert float(row[f"egcam/{key}"]) == pytest.approx(value, rel=1e-5), key
    assert all(math.isfinite(value) for s in callback.history for value in s.metrics.values())
    last = {key for key in trainer.callback_metrics if key.startswith("egcam/")}
    keys = """
        completeness_gap infidelity insertion_auc deletion_auc complexity sparseness consensus drift/previous
        drift/reference drift/noise_floor drift/significant drift/ssim drift/top_iou drift/centre_shift
        prediction_changed degenerate overhead_seconds overhead_fraction relevance_mass pointing_game
    """
    for key in keys.split():
        assert f"egcam/{key}" in last


def test_files_hold_the_history_the_pictures_and_the_page(run):
    callback, _, _ = run
    loaded = History.load(callback.run_dir)
    assert [s.key for s in loaded] == [s.key for s in callback.history]
    for kept, seen in zip(loaded, callback.history, strict=True):
        assert torch.equal(kept.attribution, seen.attribution)
    assert len(list(callback.run_dir.glob("panels/*.png"))) == len(callback.history)
    assert "<html" in (callback.run_dir / "report.html").read_text()


def test_wandb_gets_panels_and_scalars_of_every_snapshot(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("DIR", "DATA_DIR", "CACHE_DIR", "CONFIG_DIR", "ARTIFACT_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path))
    import wandb

    logger = WandbLogger(project="test", save_dir=tmp_path)
    callback = ExpectedGradCAMCallback(num_images=4, num_samples=4, num_baselines=4, max_overhead=None)
    fit(tmp_path, callback, epochs=2, logger=logger)
    files = Path(logger.experiment.dir)
    wandb.finish()
    rows = history_rows(finished_records(files))
    panels = [row for row in rows if "egcam/panels" in row]
    assert [row["trainer/global_step"] for row in panels] == [s.step for s in callback.history]
    for row, snapshot in zip(panels, callback.history, strict=True):
        assert len(row["egcam/panels"]["filenames"]) == len(row["egcam/panels"]["captions"]) == 4
        assert all(f"epoch {snapshot.epoch}, step {snapshot.step}" in text for text in row["egcam/panels"]["captions"])
        for name in row["egcam/panels"]["filenames"]:
            assert np.asarray(Image.open(files / name)).std() > 0
    scalars = [row for row in rows if "egcam/infidelity" in row]
    assert [row["trainer/global_step"] for row in scalars] == [s.step for s in callback.history]
    for row, snapshot in zip(scalars, callback.history, strict=True):
        for key, value in snapshot.metrics.items():
            assert row[f"egcam/{key}"] == pytest.approx(value, rel=1e-5), key


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, r"`num_samples` to be a positive integer, but got 0"),
        ({"num_images": -1}, r"`num_images` to be a positive integer, but got -1"),
        ({"every_n_epochs": 0}, r"`every_n_epochs` to be a positive integer, but got 0"),
        ({"max_overhead": 5}, r"`max_overhead` to be a share between 0 and 1, or None for any, but got 5"),
        ({"target": "lable"}, r"`target` to be 'label', 'predicted'"),
        ({"metrics": ["infidelty"]}, r"`metrics` to be 'default' or among .*'infidelity'.* but got 'infidelty'"),
        ({"score": "logits"}, r"`score` to be one of \('logit'"),
        ({"weighting": "spatial"}, r"`weighting` to be one of \('elementwise', 'channel', "),
        ({"mean": (0.5,)}, r"`mean` and `std` together"),
        ({"colormap": "infreno"}, r"inferno"),
    ],
)
def test_wrong_arguments_are_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        ExpectedGradCAMCallback(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"target_layer": "features.44"},
            ValueError,
            r"no layer 'features.44'.*'features.4'.*\(16, 16, 16\)",
        ),
        ({"input_key": "picture"}, ValueError, r"`input_key='picture'`.*image: torch.float32 \(8, 3, 32, 32\)"),
        ({"masks_key": "masks"}, ValueError, r"`masks_key='masks'`.*mask: torch.float32"),
        ({"target": 7}, ValueError, r"targets between 0 and 3.*but got 7"),
        (
            {"probe": {"label": torch.zeros(2)}},
            ValueError,
            r"no images in the batch.*label: torch.float32 \(2,\).*`probe=batch`",
        ),
        ({"probe": {"image": torch.zeros(0, 3, 32, 32)}}, ValueError, r"at least one image"),
        ({"forward_fn": lambda module, x: module.features(x)}, ValueError, r"logits of shape \(images, classes\)"),
        (
            {"forward_fn": lambda module, x: module(x, x)},
            MisconfigurationException,
            r"3 were given.*`forward_fn`, such as",
        ),
    ],
)
def test_what_does_not_fit_the_model_or_the_data_is_refused_before_the_first_step(tmp_path, arguments, error, message):
    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(error, match=message):
        fit(tmp_path, ExpectedGradCAMCallback(num_images=8, metrics=(), **arguments), net=net, num_sanity_val_steps=0)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_labels_out_of_range_are_refused_before_the_first_step(tmp_path):
    val = DataLoader(TensorDataset(torch.rand(8, 3, 32, 32), torch.full((8,), 9)), 4)

    class Pairs(Net):
        def validation_step(self, batch, _):
            pass

    with pytest.raises(ValueError, match=r"targets between 0 and 3, the classes of the model's output .*, but got 9"):
        fit(tmp_path, ExpectedGradCAMCallback(metrics=()), net=Pairs(), val=val, num_sanity_val_steps=0)


def test_fewer_images_than_asked_for_are_taken_with_a_warning(tmp_path):
    callback = ExpectedGradCAMCallback(num_images=64, num_samples=2, num_baselines=2, metrics=(), max_overhead=None)
    with pytest.warns(UserWarning, match="num_images=64 images to explain, but the data set has 32"):
        fit(tmp_path, callback, epochs=1)
    assert len(callback.history.probe.images) == 32


def test_a_nan_in_the_model_is_told_of_and_training_goes_on(tmp_path):
    class Broken(Net):
        def on_validation_start(self):
            with torch.no_grad():
                self.head[-1].bias[:] = torch.nan

        def training_step(self, batch, _):
            return self.head[-1].weight.sum() * 0

    callback = ExpectedGradCAMCallback(
        num_images=4, num_samples=2, num_baselines=2, max_overhead=None, log_at_start=False
    )
    with pytest.warns(UserWarning, match="gives NaN or infinity: 100% of the explanations"):
        trainer, _ = fit(tmp_path, callback, epochs=2, net=Broken(), num_sanity_val_steps=0)
    assert trainer.current_epoch == 2
    assert len(callback.history) == 2
    assert all(math.isfinite(value) for s in callback.history for value in s.metrics.values())


def test_a_given_probe_is_explained_whole_and_first_class_targets_are_settled_by_prediction(tmp_path):
    probe = {"image": torch.rand(3, 3, 32, 32)}
    callback = ExpectedGradCAMCallback(
        probe=probe, num_samples=2, num_baselines=2, metrics=(), max_overhead=None, target="predicted"
    )
    fit(tmp_path, callback)
    assert len(callback.history.probe.images) == 3
    epochs = [s for s in callback.history if s.when == "epoch"]
    assert len(epochs) >= 2
    assert torch.equal(epochs[0].target, epochs[0].prediction)
    assert all(torch.equal(s.target, epochs[0].target) for s in epochs)


def test_every_n_epochs_and_every_n_train_steps_say_when(tmp_path):
    callback = ExpectedGradCAMCallback(
        num_images=4, num_samples=2, num_baselines=2, metrics=(), max_overhead=None,
        every_n_epochs=2, every_n_train_steps=3, log_at_start=False,
    )  # fmt: skip
    fit(tmp_path, callback, epochs=4)
    # 4 steps an epoch: steps 3, 6, 9, 12, 15 have a multiple of 3 behind them; epochs 1 and 3 are every second.
    assert [(s.when, s.epoch, s.step) for s in callback.history] == [
        ("step", 0, 2),
        ("step", 1, 5),
        ("epoch", 1, 7),
        ("step", 2, 8),
        ("step", 2, 11),
        ("step", 3, 14),
        ("epoch", 3, 15),
    ]


class Remembering:
    """A logger, and the sink that remembers what reached it."""

    def __init__(self, logger, run_dir, prefix):
        self.logger = logger

    def log_snapshot(self, snapshot, history, pictures):
        self.logger.seen.append(("panels", snapshot.step, len(pictures.panels)))

    def log_page(self, path):
        self.logger.seen.append(("page", path.name))

    def alert(self, title, text):
        self.logger.seen.append(("alert", title))


class RememberingLogger(CSVLogger):
    def __init__(self, *args):
        super().__init__(*args)
        self.seen = []


def test_alerts_are_sent_once_a_rise_and_the_page_at_its_interval(tmp_path):
    register_sink(RememberingLogger)(Remembering)
    logger = RememberingLogger(tmp_path)
    callback = ExpectedGradCAMCallback(
        num_images=4, num_samples=4, num_baselines=4, metrics=("complexity",), max_overhead=None,
        alerts={"complexity": 0.0, "drift/previous": 1e9}, log_page_every=2,
    )  # fmt: skip
    fit(tmp_path, callback, epochs=3, logger=logger)
    kinds = [entry[0] for entry in logger.seen]
    assert kinds == ["panels", "alert", "panels", "page", "panels", "panels", "page", "page"]
    assert logger.seen[1] == ("alert", "egcam/complexity is above 0")


def test_images_baselines_and_cost_can_be_looked_at_at_any_time(tmp_path):
    callback, seen = fits.make_callback(num_baselines=6), []

    class Look(Callback):
        def on_train_start(self, trainer, pl_module):
            seen.append((callback.baselines, callback.overhead_seconds))

    assert (callback.probe, callback.baselines, callback.overhead_seconds) == (None, None, 0.0)
    fits.fit(tmp_path, callback, Look(), max_epochs=1)
    assert torch.equal(callback.probe.targets, callback.history[-1].target)
    (first, seconds), after = seen[0], callback.baselines
    for images, count in ((callback.probe.images, 4), (first, 6), (after, 6)):
        assert (tuple(images.shape), images.device.type) == ((count, 3, 16, 16), "cpu")
    assert not torch.equal(first, after), "evenly spaced images gave way to the sample of the first epoch"
    assert 0 < seconds < callback.overhead_seconds
    with pytest.raises(AttributeError):
        callback.probe = None


def test_the_overhead_is_told_by_its_parts(run):
    _, trainer, _ = run
    parts = [f"egcam/overhead/{part}_seconds" for part in ("explanation", "metrics", "drawing")]
    values = [float(trainer.callback_metrics[part]) for part in parts]
    assert all(value > 0 for value in values)
    assert sum(values) <= float(trainer.callback_metrics["egcam/overhead_seconds"])


def test_the_runner_up_is_the_best_wrong_class_and_stays(tmp_path):
    callback = ExpectedGradCAMCallback(
        num_images=4, num_samples=2, num_baselines=2, metrics=(), max_overhead=None, target="runner_up"
    )
    fit(tmp_path, callback, epochs=3)
    epochs = [s for s in callback.history if s.when == "epoch"]
    assert len(epochs) == 3
    assert (epochs[0].target != callback.history.probe.labels).all()
    assert all(torch.equal(s.target, epochs[0].target) for s in epochs)


def test_the_mean_over_layers_is_watched_as_one(tmp_path):
    callback = ExpectedGradCAMCallback(
        ["features.2", "features.4"], num_images=4, num_samples=4, num_baselines=4, metrics=(), max_overhead=None
    )
    fit(tmp_path, callback, epochs=2)
    assert callback.history[-1].layer == "features.2+features.4"
    assert callback.history[-1].attribution.shape == (4, 32, 32)
    assert "drift/previous" in callback.history[-1].metrics


@pytest.mark.parametrize("kind", ["TQDMProgressBar", "RichProgressBar"])
def test_a_snapshot_that_takes_long_says_so_in_the_progress_bar(tmp_path, monkeypatch, kind):
    if kind == "RichProgressBar":
        pytest.importorskip("rich", reason="the bar that shows it is not installed")
    from lightning.pytorch import callbacks

    bar = getattr(callbacks, kind)()
    said = []
    monkeypatch.setattr(egcam_lightning.training.fit, "_NOTICED_SECONDS", 0.0)
    show = type(bar).print
    monkeypatch.setattr(type(bar), "print", lambda self, *args: (said.append(args[0]), show(self, *args)))
    arguments = {"num_images": 4, "num_samples": 2, "num_baselines": 2, "metrics": (), "max_overhead": None}
    trainer, _ = fit(tmp_path, ExpectedGradCAMCallback(**arguments), bar, epochs=2, progress=True)
    assert trainer.current_epoch == 2
    # The snapshot before training has no other before it to go by.
    assert len([text for text in said if text.startswith("Explaining 4 images (")]) == 2


def test_without_a_progress_bar_it_is_silent(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(egcam_lightning.training.fit, "_NOTICED_SECONDS", 0.0)
    arguments = {"num_images": 4, "num_samples": 2, "num_baselines": 2, "metrics": (), "max_overhead": None}
    fit(tmp_path, ExpectedGradCAMCallback(**arguments), epochs=2)
    assert "Explaining" not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("layer", "path"), [("features.4", "its activations"), ("branch", "images, each draw a pass through the whole")]
)
def test_the_layer_its_grid_and_the_path_are_told_at_the_start(tmp_path, caplog, layer, path):
    class Branched(Net):
        def __init__(self):
            super().__init__()
            self.branch = nn.Conv2d(16, 16, 1)

        def forward(self, images):
            features = self.features(images)
            return self.head(features + self.branch(features))

    callback = ExpectedGradCAMCallback(layer, num_images=4, num_samples=2, num_baselines=2, metrics=())
    with caplog.at_level("INFO"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is not a cut of the network.*")
        fit(tmp_path, callback, epochs=1, net=Branched())
    assert f"explains 4 images at layer {layer!r} (grid 16x16), on paths between {path}" in caplog.text
