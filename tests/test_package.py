"""What the package is from outside: light to import, and what its metadata says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from torch.utils.data import TensorDataset

import egcam_lightning
from egcam_lightning.metrics.registry import AUDITED, METRICS
from egcam_lightning.training.snapshotter import _describe
from tests.support.fits import fit, make_callback, train_loader, val_loader
from tests.support.pictures import squares

ROOT = Path(__file__).parent.parent


def test_importing_it_loads_nothing_more_than_lightning_does():
    code = (
        "import sys, lightning.pytorch; before = set(sys.modules); import egcam_lightning, egcam_lightning.metrics;"
        "print(*[m for m in set(sys.modules) - before if not m.startswith('egcam_lightning')])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert loaded == []


def test_every_public_name_is_there_and_documented():
    for name in egcam_lightning.__all__:
        assert getattr(egcam_lightning, name).__doc__, name
    for name in egcam_lightning.metrics.__all__:
        assert getattr(egcam_lightning.metrics, name).__doc__, name


def test_the_version_stands_in_one_place():
    named = [
        path for path in ROOT.glob("*.*") if path.is_file() and f'"{egcam_lightning.__version__}"' in path.read_text()
    ]
    assert named == []
    assert 'path = "egcam_lightning/__init__.py"' in (ROOT / "pyproject.toml").read_text().splitlines()


def test_the_changelog_has_the_groups_of_keep_a_changelog():
    lines = (ROOT / "CHANGELOG.md").read_text().splitlines()
    versions = [line for line in lines if line.startswith("## ")]
    assert versions[0] == "## [Unreleased]"
    assert all(re.fullmatch(r"## \[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", line) for line in versions[1:])
    groups = {line.removeprefix("### ") for line in lines if line.startswith("### ")}
    assert groups <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_page_of_numbers_names_every_key_that_the_callback_may_log_and_no_other(tmp_path):
    """Those that a fit with all metrics logs, and those that a snapshot may have besides."""
    masked = [TensorDataset(*data.tensors, data.tensors[0][:, 0] > 1) for data in (squares(32), squares(16, seed=1))]
    callback = make_callback(num_samples=8, metrics=tuple(METRICS), masks_key=2)
    trainer, _ = fit(tmp_path, callback, train=train_loader(masked[0]), val=val_loader(masked[1]))
    header = Path(trainer.logger.log_dir, "metrics.csv").read_text().splitlines()[0].split(",")
    logged = {key.removeprefix("egcam/") for key in header if key.startswith("egcam/")}
    assert METRICS.keys() < logged
    known = logged | _describe(callback.history[-1]).keys() | set(AUDITED)  # so few images may be too few for an audit
    assert known - logged - set(AUDITED) == {"not_finite", "off_grid"}
    table = (ROOT / "docs" / "numbers.md").read_text().split("| key | | what it says |")[1].split("\n\n")[0]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| `")]
    named = {key for row in rows for key in re.findall(r"`([^` ]+)`", row[1])}
    assert named == known


def test_the_tests_that_the_table_of_strategies_names_are_there():
    named = re.findall(r"`(tests/[\w/.]+)`", (ROOT / "docs" / "big_runs.md").read_text())
    assert len(named) > 5
    assert all((ROOT / name).exists() for name in named)
