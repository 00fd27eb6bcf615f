"""LightningCLI: everything about the callback can be said in a YAML file."""

from __future__ import annotations

import inspect
import warnings

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningCLI
from torch.nn.functional import relu

from egcam_lightning import ExpectedGradCAM, ExpectedGradCAMCallback, History, Perturbation
from egcam_lightning.metrics import Infidelity
from tests.support.fits import Net, train_loader, val_loader

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*LightningCLI's args parameter.*")


class Named(Net):
    """Returns its logits in a mapping, as many models do."""

    def forward(self, x, twice=False):
        return {"classes": super().forward(x) * (2 if twice else 1)}

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self(batch["picture"])["classes"], batch["label"])

    def validation_step(self, batch, batch_idx):
        self(batch["picture"])


class Data(LightningDataModule):
    """Pictures, labels and masks in a mapping."""

    def train_dataloader(self):
        return train_loader(collate_fn=collate)

    def val_dataloader(self):
        return val_loader(collate_fn=collate)


def collate(samples):
    pictures, labels = (torch.stack(parts) for parts in zip(*samples, strict=True))
    weight = torch.full((len(labels),), 2.0)
    return {"picture": pictures, "label": labels, "object": (pictures.mean(1) > 1).float(), "weight": weight}


def call_twice(module, images, weight):
    assert bool((weight == 2.0).all())
    return module(images, twice=True)


def keep_layout(activation):
    return relu(activation)


def most_likely(output, labels):
    return output["classes"].argmax(1) if isinstance(output, dict) else output.argmax(1)


class Mean:
    """A score that is an instance with an argument of its own."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def __call__(self, output, target):
        return self.scale * output.mean(1)


EVERYTHING = {
    "target_layer": "features.4",
    "num_images": 5,
    "num_baselines": 3,
    "audit_images": 40,
    "audit_every": 2,
    "num_samples": 6,
    "every_n_epochs": 2,
    "every_n_train_steps": 3,
    "log_at_start": False,
    "target": "predicted",
    "metrics": ["infidelity", "sparseness"],
    "probe": None,
    "class_names": ["a", "b", "c", "d"],
    "mean": [0.5, 0.5, 0.5],
    "std": [0.2, 0.2, 0.2],
    "input_key": "picture",
    "output_key": "classes",
    "forward_fn": f"{__name__}.call_twice",
    "additional_keys": ["weight"],
    "label_key": "label",
    "masks_key": "object",
    "max_overhead": 0.9,
    "seed": 7,
    "save_dir": "files",
    "log_prefix": "look",
    "alerts": {"consensus": 0.95},
    "log_page_every": 2,
    "colormap": "magma",
    "perturbation": {
        "class_path": "egcam_lightning.Perturbation",
        "init_args": {"space": "input", "baseline": "data", "interval": [0.25, 0.75], "noise": 0.1},
    },
    "weighting": "channel",
    "score": "log_probability",
    "reshape_transform": f"{__name__}.keep_layout",
    "chunk_size": 16,
    "baseline_samples": 16,
    "save_baselines": False,
    "strict": True,
}


@pytest.fixture
def build(tmp_path):
    """Runs LightningCLI with a YAML file that holds the callback with some arguments."""

    def run(subcommand="fit", **init_args):
        config = {
            "trainer": {
                "max_epochs": 2,
                "accelerator": "cpu",
                "default_root_dir": str(tmp_path),
                "logger": {
                    "class_path": "lightning.pytorch.loggers.CSVLogger",
                    "init_args": {"save_dir": str(tmp_path)},
                },
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "enable_checkpointing": False,
                "log_every_n_steps": 1,
                "callbacks": [{"class_path": "egcam_lightning.ExpectedGradCAMCallback", "init_args": init_args}],
            }
        }
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        args = ["--config", str(file)] if subcommand is None else [subcommand, "--config", str(file)]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*")
            cli = LightningCLI(Named, Data, args=args, run=subcommand is not None, seed_everything_default=0)
        (callback,) = (c for c in cli.trainer.callbacks if isinstance(c, ExpectedGradCAMCallback))
        return callback, cli.trainer

    return run


def test_a_fit_with_every_argument_from_a_yaml_file(build, tmp_path):
    assert set(EVERYTHING) == set(inspect.signature(ExpectedGradCAMCallback).parameters)
    callback, trainer = build(**EVERYTHING)
    # 4 steps an epoch, every third of them, and the second epoch's own.
    assert [(s.epoch, s.step, s.when) for s in callback.history] == [(0, 2, "step"), (1, 5, "step"), (1, 7, "epoch")]
    settings = callback._config
    assert settings.explainer.perturbation == Perturbation(space="input", interval=(0.25, 0.75), noise=0.1)
    assert settings.explainer.forward_fn is call_twice
    assert settings.explainer.reshape_transform is keep_layout
    assert (settings.explainer.chunk_size, settings.baseline_samples, settings.max_overhead) == (16, 16, 0.9)
    history = callback.history
    assert history.probe.class_names == ("a", "b", "c", "d")
    assert len(history.probe.images) == 5
    assert history.probe.masks is not None
    assert history.probe.restored  # by the mean and the standard deviation
    assert {s.layer for s in history} == {"features.4 (Expected Grad-CAM, channels pooled)"}
    assert torch.equal(history[-1].target, history[-1].prediction)
    assert {"infidelity", "sparseness"} <= set(history[-1].metrics)
    assert "insertion_auc" not in history[-1].metrics
    assert "look/infidelity" in trainer.callback_metrics
    assert len(History.load(tmp_path / "files" / "look")) == 3
    assert callback.state_dict()["baselines"]["chosen"] is None
    # What was run is written beside the logs, and can be run again.
    (saved,) = tmp_path.rglob("lightning_logs/*/config.yaml")
    (entry,) = yaml.safe_load(saved.read_text())["trainer"]["callbacks"]
    assert entry["init_args"]["forward_fn"] == f"{__name__}.call_twice"
    assert entry["init_args"]["perturbation"]["noise"] == 0.1


def test_the_defaults_need_no_argument_but_where_the_logits_are(build):
    callback, _ = build(output_key="classes", max_overhead=None)
    assert [(s.epoch, s.step, s.when) for s in callback.history] == [(0, 0, "start"), (0, 3, "epoch"), (1, 7, "epoch")]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("target", 2, 2),
        ("target", f"{__name__}.most_likely", most_likely),
        ("metrics", "default", "default"),
        ("metrics", [], ()),
        ("max_overhead", None, None),
        ("probe", [0, 4], [0, 4]),
    ],
)
def test_every_kind_of_value_arrives_as_it_is(build, name, value, expected):
    callback, _ = build(None, **{name: value})
    assert getattr(callback._config, name) == expected


@pytest.mark.parametrize(
    ("name", "value"), [("input_key", 0), ("input_key", "views.0"), ("label_key", 2), ("masks_key", -1)]
)
def test_keys_are_names_or_numbers(build, name, value):
    callback, _ = build(None, **{name: value})
    assert getattr(callback._config.keys, name) == value


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("output_key", 1, 1),
        ("score", f"{__name__}.most_likely", most_likely),
        ("score", "margin", "margin"),
        ("perturbation", {"space": "input", "noise": 0.5}, Perturbation(space="input", noise=0.5)),
        ("weighting", None, None),
    ],
)
def test_every_kind_of_value_reaches_the_explainer(build, name, value, expected):
    callback, _ = build(None, **{name: value})
    assert getattr(callback._config.explainer, name) == expected


def test_a_score_may_be_an_instance_of_a_class(build):
    callback, _ = build(None, score={"class_path": f"{__name__}.Mean", "init_args": {"scale": 3.0}})
    score = callback._config.explainer.score
    assert isinstance(score, Mean)
    assert score.scale == 3.0


def test_metrics_may_be_instances(build):
    metric = {"class_path": "egcam_lightning.metrics.Infidelity", "init_args": {"num_perturbations": 4}}
    callback, _ = build(None, metrics=["sparseness", metric])
    name, instance = callback._config.metrics
    assert name == "sparseness"
    assert isinstance(instance, Infidelity)


def test_metrics_may_have_keys_of_their_own(build):
    metric = {"class_path": "egcam_lightning.metrics.Infidelity", "init_args": {"num_perturbations": 4}}
    callback, _ = build(None, metrics={"coarse": metric, "fine": "infidelity"})
    chosen = callback._config.metrics
    assert list(chosen) == ["coarse", "fine"]
    assert isinstance(chosen["coarse"], Infidelity)
    assert chosen["fine"] == "infidelity"


def test_wrong_values_are_refused_with_their_names(build, capsys):
    with pytest.raises(SystemExit):
        build(None, num_images="many")
    assert "num_images" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"`num_samples` to be a positive integer, but got 0"):
        build(None, num_samples=0)


def test_explainer_names_in_yaml_are_those_in_python():
    """So that what is found in a notebook can be written into a file as it stands."""
    shared = set(inspect.signature(ExpectedGradCAM).parameters) - {"model"}
    assert shared <= set(EVERYTHING)
