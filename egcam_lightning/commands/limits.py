"""Limits for continuous integration: ``--fail-if "capture/excess>0.3"``, and what their end is told as."""

from __future__ import annotations

import argparse
import math
import operator
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from xml.etree import ElementTree

from egcam_lightning.history.files import replace_file
from egcam_lightning.history.history import History
from egcam_lightning.training.auditor import scalars_of

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_WORDS = {">": "above", ">=": "at or above", "<": "below", "<=": "at or below"}
_FORM = re.compile(r"\s*([\w./-]+)\s*(>=|<=|>|<)\s*(\S+)\s*")


@dataclass(frozen=True)
class Limit:
    """A value that must not be reached.

    Attributes:
        key: what the value is known by.
        sign: how it is compared, ``">"``, ``">="``, ``"<"`` or ``"<="``.
        bound: what it is compared with.

    """

    key: str
    sign: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> Limit:
        """Read a limit.

        Raises:
            ValueError: where it has another form.

        Example:
            >>> Limit.parse("capture/excess > 0.3")
            Limit(key='capture/excess', sign='>', bound=0.3)

        """
        found = _FORM.fullmatch(text)
        try:
            if found is None:
                raise ValueError
            bound = float(found[3])
            if math.isnan(bound):
                raise ValueError
        except ValueError:
            raise ValueError(
                "Expected `--fail-if` to be a name, a sign and a number, such as 'capture/excess>0.3', but got "
                f"{text!r}."
            ) from None
        return cls(found[1].removeprefix("egcam/"), found[2], bound)

    def __str__(self) -> str:
        return f"{self.key}{self.sign}{self.bound:g}"

    def broken_by(self, values: Mapping[str, float]) -> str | None:
        """A sentence where the limit is broken; ``None`` where it holds.

        Args:
            values: by key.

        Raises:
            ValueError: where there is no such value; names the close ones.

        Example:
            >>> Limit.parse("capture/excess>0.3").broken_by({"capture/excess": 0.5})
            'capture/excess is 0.5, which is above 0.3.'

        """
        if self.key not in values:
            raise ValueError(f"--fail-if {str(self)!r}: there is no value {self.key!r}. {_close(self.key, values)}")
        value = values[self.key]
        if not _COMPARE[self.sign](value, self.bound):
            return None
        return f"{self.key} is {value:.4g}, which is {_WORDS[self.sign]} {self.bound:g}."


def _close(key: str, values: Mapping[str, float]) -> str:
    close = get_close_matches(key, values, n=4, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(map(repr, close))}?"
    return f"There are: {', '.join(sorted(values))}." if values else "There are none at all."


def values_of(history: History) -> dict[str, float]:
    """What limits may ask of a run: the last snapshot's values, and those of the last audit.

    ``findings`` is how many the audit has. What the audit has measured on images of its own goes before the snapshot's.
    """
    values = dict(history.snapshots[-1].metrics) if len(history) else {}
    values |= scalars_of(history.audit)
    if history.audit is None:
        return values
    values |= {one.key: one.mean for one in history.audit.faithfulness}
    return {**values, "findings": float(len(history.audit.findings))}


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Let a subcommand fail where a limit is broken."""
    parser.add_argument(
        "--fail-if",
        metavar="LIMIT",
        action="append",
        default=[],
        help="exit with 1 where this holds of the last values, such as 'capture/excess>0.3'; may be repeated",
    )
    parser.add_argument(
        "--junit",
        metavar="FILE",
        type=Path,
        help="write the limits as JUnit XML, which continuous integration reads: a test case each",
    )


def limits_of(arguments: argparse.Namespace) -> list[Limit]:
    """The limits of a command line.

    Raises:
        ValueError: where one has another form.

    """
    return [Limit.parse(text) for text in arguments.fail_if]


def enforce(arguments: argparse.Namespace, values: Mapping[str, float]) -> int:
    """Say which limits are broken, and write them down where that was asked for.

    Args:
        arguments: of the command line.
        values: by key.

    Returns:
        The exit code: 1 where one is broken.

    Raises:
        ValueError: for a limit of a value that is not there.
        OSError: where the XML cannot be written.

    """
    limits = limits_of(arguments)
    broken = [limit.broken_by(values) for limit in limits]
    for sentence in broken:
        if sentence is not None:
            print(sentence, file=sys.stderr)
    if arguments.junit is not None:
        replace_file(arguments.junit, junit(f"egcam {arguments.command}", limits, broken))
    return int(any(broken))


def junit(name: str, limits: Sequence[Limit], broken: Sequence[str | None]) -> bytes:
    """JUnit XML with a test case a limit.

    Args:
        name: of the suite.
        limits: the limits.
        broken: a sentence for each that is broken, else ``None``.

    Example:
        >>> limit = Limit.parse("findings>0")
        >>> b'failures="1"' in junit("egcam audit", [limit], ["findings is 2, which is above 0."])
        True

    """
    failures = sum(sentence is not None for sentence in broken)
    suite = ElementTree.Element("testsuite", name=name, tests=str(len(limits)), failures=str(failures))
    for limit, sentence in zip(limits, broken, strict=True):
        case = ElementTree.SubElement(suite, "testcase", classname=name, name=f"not {limit}")
        if sentence is not None:
            ElementTree.SubElement(case, "failure", message=sentence).text = sentence
    ElementTree.indent(suite)
    written: bytes = ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)
    return written
