"""What the package is from outside: light to import, and what its metadata says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import egcam_lightning

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


def test_the_version_is_that_of_the_metadata():
    assert f'version = "{egcam_lightning.__version__}"' in (ROOT / "pyproject.toml").read_text().splitlines()


def test_the_readme_names_every_key_that_the_callback_may_log():
    readme = (ROOT / "README.md").read_text()
    for key in [
        "completeness_gap",
        "infidelity",
        "insertion_auc",
        "deletion_auc",
        "complexity",
        "sparseness",
        "consensus",
        "consensus_null",
        "recurrence",
        "drift/previous",
        "drift/reference",
        "drift/noise_floor",
        "drift/significant",
        "drift/ssim",
        "drift/top_iou",
        "drift/centre_shift",
        "prediction_changed",
        "degenerate",
        "off_grid",
        "not_finite",
        "relevance_mass",
        "pointing_game",
        "overhead_seconds",
        "overhead_fraction",
        "max_sensitivity",
    ]:
        assert f"`{key}`" in readme, key
