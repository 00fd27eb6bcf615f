"""The notebook runs from its first cell to its last, and shows what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_tour_runs_and_shows_what_it_says(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    # The kernel finds the modules beside the notebook, and writes its runs elsewhere.
    monkeypatch.setenv("PYTHONPATH", f"{EXAMPLES}:{EXAMPLES.parent}")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    notebook = nbformat.read(EXAMPLES / "tour.ipynb", as_version=4)
    notebook.metadata.kernelspec.name = "python3"
    client = nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    text = ["".join(out.get("text", "") for out in cell.outputs if out.get("name") == "stdout") for cell in cells]
    kinds = [{kind for out in cell.outputs for kind in out.get("data", {})} for cell in cells]
    assert "accuracy" in text[1]
    assert "text/html" in kinds[2], "the history shows itself"
    assert "image/png" in kinds[3], "curves"
    assert "image/png" in kinds[4], "the story of an image"
    assert text[5].count("the map adds up to") == 4
    assert "alone makes other images" in text[7], "the shortcut is found"
    assert "looks elsewhere than" in text[8]
    assert "text/html" in kinds[9], "the page"


def test_the_notebook_is_kept_without_outputs():
    import json

    cells = json.loads((EXAMPLES / "tour.ipynb").read_text())["cells"]
    assert [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []
