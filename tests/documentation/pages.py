"""The pages, and what is in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {str(path.relative_to(ROOT)): path for path in [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))]}

_FENCED = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


def blocks(path: Path, language: str) -> list[tuple[int, str]]:
    """The line that each fenced block of a language begins on, and the block.

    A comment ``<!-- not run: why -->`` above a block leaves it out.
    """
    text = path.read_text(encoding="utf-8")
    found = []
    for match in _FENCED.finditer(text):
        above = text[: match.start()].rstrip().rpartition("\n")[2]
        if match[2] == language and not above.lstrip().startswith("<!-- not run: "):
            indent = len(match[1])
            body = "\n".join(line[indent:] for line in match[3].splitlines())
            found.append((text.count("\n", 0, match.start()) + 2, body))
    return found


def prose(path: Path) -> str:
    """A page without its fenced blocks and what stands between backticks."""
    return re.sub(r"`[^`\n]*`", "", _FENCED.sub("", path.read_text(encoding="utf-8")))
