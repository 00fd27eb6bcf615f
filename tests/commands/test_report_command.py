"""``egcam report``: the page from what a run left, and limits that turn a build red."""

from __future__ import annotations

import subprocess
import sys
from xml.etree import ElementTree

import pytest

from egcam_lightning.commands.limits import Limit
from egcam_lightning.commands.main import build_parser, main
from egcam_lightning.history.folder import RunFolder
from tests.support.snapshots import make_history


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    history = make_history()
    folder.open(history.probe, snapshots=history.snapshots)
    return folder.path


def test_it_builds_the_page_and_says_where(run_dir, capsys):
    assert main(["report", str(run_dir)]) == 0
    assert capsys.readouterr().out.strip() == str(run_dir.resolve() / "report.html")


def test_open_shows_the_page_in_the_browser(run_dir, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert main(["report", str(run_dir), "--open"]) == 0
    assert opened == [(run_dir.resolve() / "report.html").as_uri()]


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "egcam_lightning", "report", "/nowhere"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("egcam report: /nowhere holds no history.jsonl")


def test_a_limit_is_red_where_it_is_broken_and_green_where_it_holds(run_dir, capsys, tmp_path):
    value = make_history()[-1].metrics["consensus"]
    limits = ["--fail-if", f"consensus>{value + 0.01}", "--fail-if", f"consensus > {value - 0.01}"]
    assert main(["report", str(run_dir), *limits[:2]]) == 0
    assert main(["report", str(run_dir), *limits, "--junit", str(tmp_path / "limits.xml")]) == 1
    assert f"consensus is {value:.4g}, which is above {value - 0.01:g}." in capsys.readouterr().err
    suite = ElementTree.parse(tmp_path / "limits.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert [case.find("failure") is None for case in suite] == [True, False]


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("consensus", "Expected `--fail-if` to be a name, a sign and a number"),
        ("consensus>high", "Expected `--fail-if` to be a name, a sign and a number"),
        ("consensu>0.5", "there is no value 'consensu'. Did you mean 'consensus'"),
        ("capture/excess>0.3", "there is no value 'capture/excess'."),
    ],
)
def test_a_limit_that_means_nothing_is_bad_input(run_dir, capsys, limit, said):
    assert main(["report", str(run_dir), "--fail-if", limit]) == 2
    assert said in capsys.readouterr().err


def test_keys_may_be_written_as_loggers_have_them():
    assert Limit.parse("egcam/drift/previous<=1e-3") == Limit("drift/previous", "<=", 1e-3)


@pytest.mark.parametrize("command", [[], ["report"]])
def test_help_fits_a_screen(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        build_parser().parse_args([*command, "--help"])
    assert end.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) <= 50
