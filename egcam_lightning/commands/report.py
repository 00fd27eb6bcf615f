"""``egcam report RUN_DIR [OTHER]``: build the page of one run, or of two side by side, from what they left."""

from __future__ import annotations

import argparse

from egcam_lightning.commands.limits import add_limits, enforce, limits_of, values_of
from egcam_lightning.commands.pages import add_open, show
from egcam_lightning.report.__main__ import add_folders, write_page


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the subcommand takes."""
    add_folders(parser)
    add_open(parser)
    add_limits(parser)


def run(arguments: argparse.Namespace) -> int:
    """Build the page; the limits are of the last run that is named."""
    limits_of(arguments)  # what means nothing is told of before anything is written
    page, histories = write_page(arguments.run_dir, arguments.output)
    show(page, arguments.open)
    return enforce(arguments, values_of(histories[-1]))
