"""The documentation builds, strictly: a warning is a failure."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import egcam_lightning
from tests.documentation.pages import ROOT


def test_every_public_name_is_in_the_reference():
    reference = "".join(path.read_text() for path in (ROOT / "docs" / "api").glob("*.md")).splitlines()
    assert [name for name in egcam_lightning.__all__ if f"::: egcam_lightning.{name}" not in reference] == []


@pytest.mark.slow
def test_it_builds_without_a_warning(tmp_path):
    for name in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(name, reason='The documentation is built by the extra `docs`: pip install -e ".[docs]".')
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "site" / "api" / "callback" / "index.html").read_text()
    assert "max_overhead" in reference
    assert "&gt;&gt;&gt;" in reference.replace('<span class="gp">', ""), "examples are shown as code"
