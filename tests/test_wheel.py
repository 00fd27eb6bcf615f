"""What is released installs, and is whole: built, put into a fresh environment, and used there."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path
from types import SimpleNamespace

import pytest

import egcam_lightning

ROOT = Path(__file__).parent.parent
ASSETS = sorted(path.name for path in (ROOT / "egcam_lightning" / "report" / "assets").iterdir())

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    """What a command prints, away from the sources."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """An environment into which the wheel alone was installed; what it depends on is borrowed from this one."""
    pytest.importorskip("build", reason="The package `build` makes the wheel; it comes with the extra `test`.")
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", ROOT, cwd=folder)
    wheel, sdist = next((folder / "dist").glob("*.whl")), next((folder / "dist").glob("*.tar.gz"))
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    # A line of a .pth file is searched behind the environment's own packages, and its own .pth files are not read: an
    # editable install of the sources is not found through it.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return SimpleNamespace(folder=folder, python=python, packages=packages, sdist=sdist)


def test_it_imports_from_where_it_was_installed(installed):
    code = "import egcam_lightning as e; print(e.__file__, e.__version__); e.ExpectedGradCAMCallback()"
    path, version = run(installed.python, "-c", code, cwd=installed.folder).split()
    assert Path(path).is_relative_to(installed.packages)
    assert version == egcam_lightning.__version__


def test_the_metadata_have_the_version_and_the_readme(installed):
    code = "from importlib.metadata import metadata; found = metadata('egcam-lightning'); print(found['Version'])"
    assert run(installed.python, "-c", code, cwd=installed.folder).strip() == egcam_lightning.__version__
    found = next(installed.packages.glob("egcam_lightning-*.dist-info/METADATA")).read_text()
    assert (ROOT / "README.md").read_text().strip() in found


def test_the_command_runs(installed):
    said = run(installed.python.parent / "egcam", "--help", cwd=installed.folder)
    assert all(command in said for command in ("report", "replay", "compare", "audit"))


def test_the_assets_of_the_page_are_there_and_a_page_can_be_made(installed):
    assert sorted(p.name for p in (installed.packages / "egcam_lightning" / "report" / "assets").iterdir()) == ASSETS
    code = (
        "import torch; from egcam_lightning import History, ProbeImages;"
        "from egcam_lightning.report import build_report;"
        "build_report(History(ProbeImages(torch.zeros(2, 8, 8, 3, dtype=torch.uint8))), 'page.html')"
    )
    run(installed.python, "-c", code, cwd=installed.folder)
    assert "No snapshot has been taken yet" in (installed.folder / "page.html").read_text()
    assert (installed.packages / "egcam_lightning" / "py.typed").is_file()


def test_nothing_else_is_installed(installed):
    names = {p.name for p in installed.packages.iterdir() if p.name != "__pycache__"}
    assert {name.split("-")[0] for name in names} == {"egcam_lightning", "borrowed.pth"}


def test_the_sdist_has_what_is_needed_to_test_and_to_document(installed):
    with tarfile.open(installed.sdist) as sdist:
        tops = {name.split("/")[1] for name in sdist.getnames()}
    wanted = {"egcam_lightning", "examples", "tests", "docs", "mkdocs.yml", "pyproject.toml", "LICENSE", "SECURITY.md"}
    assert wanted | {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff"} <= tops
