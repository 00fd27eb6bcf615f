"""Where a page is, said and shown."""

from __future__ import annotations

import argparse
import webbrowser
from pathlib import Path


def add_open(parser: argparse.ArgumentParser) -> None:
    """Let a subcommand open its page."""
    parser.add_argument("--open", action="store_true", help="open the page in the browser")


def show(page: Path, open_it: bool) -> None:
    """Print where a page is, and open it where that was asked for."""
    print(page)
    if open_it:
        webbrowser.open(page.resolve().as_uri())
