"""The timeline: a history in, one self-contained HTML page out.

The page needs no network and no server. Maps travel as numbers at the layer's resolution and are drawn in the browser
over one copy of each picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from egcam_lightning.history.files import replace_file
from egcam_lightning.history.history import History
from egcam_lightning.notebook import Frame
from egcam_lightning.pictures.patches import as_shown
from egcam_lightning.report.audit import class_rows, faithfulness_rows
from egcam_lightning.report.payload import build_payload
from egcam_lightning.report.summary import summarise
from egcam_lightning.report.templates import ASSETS, content_hash, templates

__all__ = ["Frame", "build_report", "show_report"]

_SCRIPTS = ("maps.js", "charts.js", "rows.js", "page.js")


def build_report(
    history: History | Sequence[History], path: str | PathLike[str], *, names: Sequence[str] | None = None
) -> Path:
    """Write the page of one run, or of two side by side, aligned by epoch.

    The file appears whole or not at all, so the page can be reloaded while training goes on. The time it takes is
    linear in the number of snapshots.

    Args:
        history: one history, or a sequence of one or two.
        path: where the page goes; its folder is made where it is missing.
        names: a name for each run; by default ``"run"``, or ``"run A"`` and ``"run B"``.

    Returns:
        The path of the page.

    Raises:
        ValueError: for no history or more than two, for names that do not match them in number, and for maps or
            images of a shape that cannot be shown.
        OSError: where the disk does not take it; the page that was there is then still whole.

    Example:
        >>> import tempfile, torch
        >>> from egcam_lightning.history.history import History
        >>> from egcam_lightning.history.records import ProbeImages
        >>> nothing_yet = History(ProbeImages(torch.zeros(2, 8, 8, 3, dtype=torch.uint8)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = build_report(nothing_yet, Path(folder) / "report.html")
        ...     "No snapshot has been taken yet" in page.read_text(encoding="utf-8")
        True

    """
    page = _page(history, names)
    path = Path(path)
    replace_file(path, page.encode())
    return path


def show_report(
    history: History | Sequence[History], *, names: Sequence[str] | None = None, height: int = 720
) -> Frame:
    """The page of :func:`build_report` inside a notebook, as the last value of a cell.

    Args:
        history: one history, or a sequence of one or two.
        names: a name for each run.
        height: of the frame, in pixels.

    Returns:
        What shows itself as the page, in a frame of its own.

    Raises:
        ValueError: as :func:`build_report` does.

    Example:
        >>> import torch
        >>> from egcam_lightning.history.history import History
        >>> from egcam_lightning.history.records import ProbeImages
        >>> show_report(History(ProbeImages(torch.zeros(2, 8, 8, 3, dtype=torch.uint8))))._repr_html_()[:25]
        '<iframe sandbox="allow-sc'

    """
    return Frame(_page(history, names), height)


def _page(history: History | Sequence[History], names: Sequence[str] | None) -> str:
    histories = [history] if isinstance(history, History) else list(history)
    if not 1 <= len(histories) <= 2:
        raise ValueError(f"Got {len(histories)} histories; a page shows one run or two: build_report([a, b], path).")
    names = list(names) if names is not None else (["run"] if len(histories) == 1 else ["run A", "run B"])
    if len(names) != len(histories):
        raise ValueError(f"Got {len(names)} names for {len(histories)} histories; pass one name a run.")
    return _render(histories, names)


def _render(histories: list[History], names: list[str]) -> str:
    from markupsafe import Markup

    style = (ASSETS / "page.css").read_text(encoding="utf-8")
    script = "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    return (
        templates()
        .get_template("page.html.jinja")
        .render(
            style=Markup(style),
            script=Markup(script),
            style_hash=content_hash(style),
            script_hash=content_hash(script),
            names=names,
            histories=histories,
            summaries=[summarise(history) for history in histories],
            audits=[
                {
                    "name": name,
                    "record": audit,
                    "tested": audit.tested,
                    "rows": class_rows(as_shown(audit)),
                    "faithfulness": faithfulness_rows(audit),
                }
                for name, audit in zip(names, (history.audit for history in histories), strict=True)
                if audit is not None and audit.classes
            ],
            data=build_payload(histories, names),
            restored=all(history.probe.restored for history in histories),
            same_images=len({history.probe.fingerprint for history in histories}) == 1,
        )
    )
