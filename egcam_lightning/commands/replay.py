"""``egcam replay CKPT_OR_DIR...``: the whole timeline of a run that is over, from its checkpoints, without training."""

from __future__ import annotations

import argparse
from pathlib import Path

from egcam_lightning.commands.limits import add_limits, enforce, limits_of, values_of
from egcam_lightning.commands.pages import add_open, show
from egcam_lightning.commands.sources import add_source, source_of
from egcam_lightning.replaying.checkpoints import find_checkpoints
from egcam_lightning.replaying.replay import default_folder, look_at


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the subcommand takes."""
    parser.add_argument(
        "checkpoints", type=Path, nargs="+", metavar="CKPT_OR_DIR", help="checkpoints of one run, or folders of them"
    )
    add_source(parser)
    parser.add_argument("-o", "--out", type=Path, metavar="DIR", help="folder for files (replay in the run's folder)")
    add_open(parser)
    add_limits(parser)
    parser.epilog = "Interrupted, the same command goes on where it stopped: finished checkpoints are kept."


def run(arguments: argparse.Namespace) -> int:
    """Replay the run; the limits are of its last checkpoint."""
    limits_of(arguments)  # what means nothing is told of before work starts
    found = find_checkpoints(arguments.checkpoints, trust=arguments.trust)
    source = source_of(arguments, found[-1].arguments, found[-1].data_arguments)
    replayed = look_at(
        found,
        source.module,
        source.datamodule,
        arguments.out or default_folder(found),
        accelerator=arguments.accelerator,
        trust=arguments.trust,
        **source.settings,
    )
    show(replayed.page, arguments.open)
    return enforce(arguments, values_of(replayed.history))
