from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger, Logger
from PIL import Image

from egcam_lightning import sinks
from egcam_lightning.sinks import find_sinks, register_sink
from egcam_lightning.sinks.files import FileSink
from egcam_lightning.sinks.tensorboard import TensorBoardSink


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(sinks, "_registry", dict(sinks._registry))


class OwnLogger(Logger):
    name = version = None

    def log_metrics(self, metrics, step=None): ...

    def log_hyperparams(self, params): ...


class OwnSink:
    def __init__(self, logger, run_dir, prefix):
        self.made_with = (logger, run_dir, prefix)


def test_loggers_that_show_no_pictures_share_one_file_sink(tmp_path):
    for loggers in ([], [DummyLogger()], [OwnLogger(), CSVLogger(tmp_path), DummyLogger()]):
        found = find_sinks(loggers, tmp_path, "mine")
        assert [type(sink) for sink in found] == [FileSink]


def test_no_files_where_a_logger_shows_pictures(tmp_path, log_all):
    found = find_sinks([CSVLogger(tmp_path), TensorBoardLogger(tmp_path)], tmp_path / "run", "mine")
    assert [type(sink) for sink in found] == [TensorBoardSink]
    log_all(found[0])
    assert not (tmp_path / "run").exists()


def test_the_older_name_of_lightning_is_the_same_library(tmp_path):
    from pytorch_lightning.loggers import TensorBoardLogger as OlderName

    assert OlderName is not TensorBoardLogger
    assert [type(sink) for sink in find_sinks([OlderName(tmp_path)], tmp_path, "mine")] == [TensorBoardSink]


def test_a_subclass_is_shown_as_its_parent_unless_it_has_its_own(tmp_path):
    class Mine(TensorBoardLogger):
        pass

    logger = Mine(tmp_path)
    assert type(find_sinks([logger], tmp_path, "mine")[0]) is TensorBoardSink
    register_sink(Mine)(OwnSink)
    (sink,) = find_sinks([logger], tmp_path, "mine")
    assert sink.made_with == (logger, tmp_path, "mine")


@pytest.mark.parametrize("how", [OwnLogger, f"{OwnLogger.__module__}.OwnLogger"])
def test_a_logger_of_ones_own_is_found_by_class_or_name(tmp_path, how):
    assert register_sink(how)(OwnSink) is OwnSink
    found = find_sinks([OwnLogger(), TensorBoardLogger(tmp_path)], tmp_path, "mine")
    assert [type(sink) for sink in found] == [OwnSink, TensorBoardSink]


def test_registering_something_else_says_what_to_give():
    with pytest.raises(TypeError, match="a logger's class or its qualified name, got 3"):
        register_sink(3)


def test_files_hold_the_sheets(tmp_path, log_all, drawn):
    (sink,) = find_sinks([], tmp_path, "mine")
    log_all(sink)
    files = sorted((tmp_path / "panels").iterdir())
    assert [file.name for file in files] == [
        "epoch=0000-step=000000-start.png",
        "epoch=0000-step=000009.png",
        "epoch=0001-step=000019.png",
    ]
    for file, pictures in zip(files, drawn, strict=True):
        assert np.array_equal(np.asarray(Image.open(file)), pictures.sheet())


def test_finding_a_sink_imports_no_logging_library(tmp_path):
    code = (
        "import sys; from pathlib import Path; from egcam_lightning.sinks import find_sinks; "
        "find_sinks([], Path('.'), 'mine'); "
        "print(*[m for m in ('wandb', 'mlflow', 'comet_ml', 'tensorboard') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
