"""The command line: which subcommand runs, and what its end says to the shell."""

from __future__ import annotations

import argparse
import logging
import sys
import traceback
from collections.abc import Sequence

from lightning.fabric.utilities.exceptions import MisconfigurationException

from egcam_lightning.commands import audit, compare, replay, report

_COMMANDS = {"replay": replay, "audit": audit, "compare": compare, "report": report}

BROKEN, BAD_INPUT, FAILED, INTERRUPTED = 1, 2, 3, 130  # beside 0, when all is well

_ENDS = """\
exit codes: 0 all is well; 1 a limit of --fail-if is broken; 2 bad input; 3 something else went wrong
`egcam COMMAND --help` says more.
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands.

    Example:
        >>> build_parser().parse_args(["report", "run"]).command
        'report'

    """
    parser = argparse.ArgumentParser(
        prog="egcam",
        description="Look at a model after the fact: at its checkpoints, or at what a run left.",
        epilog=_ENDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in _COMMANDS.items():
        first = (module.__doc__ or "").splitlines()[0].partition("``: ")[2]
        about = first[:1].upper() + first[1:]
        command = commands.add_parser(
            name, help=first, description=about, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command ``egcam``.

    Args:
        argv: the command line without the program's name; by default the process's own.

    Returns:
        0 where all is well, 1 where a limit is broken, 2 for bad input, 3 where something else went wrong, 130 where
        it was interrupted.

    """
    arguments = build_parser().parse_args(argv)
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    log.addFilter(_is_ours)
    try:
        return int(arguments.run(arguments))
    except (ValueError, OSError, MisconfigurationException) as error:
        print(f"egcam {arguments.command}: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on where it stopped.", file=sys.stderr)
        return INTERRUPTED
    except Exception:
        traceback.print_exc()  # not the exit code 1 that Python gives it, which says that a limit is broken
        return FAILED
    finally:
        log.removeFilter(_is_ours)


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether a message is of this package: what a Trainer says of itself is of no use here."""
    return "egcam_lightning" in record.pathname or record.levelno > logging.INFO
