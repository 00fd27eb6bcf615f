"""``python -m egcam_lightning.report RUN_DIR [RUN_DIR2] [-o OUT]``: build the page again from the history."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from egcam_lightning.history.history import History
from egcam_lightning.report import build_report


def main(argv: Sequence[str] | None = None) -> None:
    """Read one or two histories and write their page.

    Args:
        argv: the command line without the program's name; by default the process's own.

    """
    parser = argparse.ArgumentParser(prog="python -m egcam_lightning.report", description=main.__doc__)
    add_folders(parser)
    arguments = parser.parse_args(argv)
    try:
        page, _ = write_page(arguments.run_dir, arguments.output)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(page)


def add_folders(parser: argparse.ArgumentParser) -> None:
    """Say which folders a page is built from, and where it goes."""
    parser.add_argument("run_dir", type=Path, nargs="+", help="one or two folders that hold a history.jsonl")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        help="the page to write; by default report.html in RUN_DIR, or compare.html in the first of two",
    )


def write_page(run_dirs: Sequence[Path], output: Path | None) -> tuple[Path, list[History]]:
    """Read one or two histories and write their page.

    Args:
        run_dirs: the folders that hold them.
        output: where the page goes; ``None`` for the first folder.

    Returns:
        The page, and the histories.

    Raises:
        ValueError: for more than two folders, and where one holds no history, or a damaged one.
        OSError: where the disk does not take the page.

    """
    folders = [folder.resolve() for folder in run_dirs]
    if len(folders) > 2:
        raise ValueError(f"got {len(folders)} folders; a page shows one run or two")
    output = output or folders[0] / ("report.html" if len(folders) == 1 else "compare.html")
    histories = [History.load(folder) for folder in folders]
    return build_report(histories, output, names=run_names(folders)), histories


def run_names(folders: Sequence[Path]) -> list[str]:
    """Name runs by what tells their folders apart.

    Args:
        folders: one or two folders.

    Returns:
        One name a folder.

    Example:
        >>> run_names([Path("logs/version_0/egcam"), Path("logs/version_1/egcam")])
        ['version_0', 'version_1']
        >>> run_names([Path("logs/version_0/egcam")])
        ['version_0/egcam']

    """
    parts = [folder.parts for folder in folders]
    if len(set(parts)) == 1:
        return ["/".join(p[-2:]) for p in parts]
    first, second = parts
    shared_head = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), 0)
    shared_tail = next((i for i, (a, b) in enumerate(zip(first[::-1], second[::-1], strict=False)) if a != b), 0)
    names = ["/".join(p[shared_head : len(p) - shared_tail]) for p in parts]
    return [name or folder.name for name, folder in zip(names, folders, strict=True)]


if __name__ == "__main__":
    main()
