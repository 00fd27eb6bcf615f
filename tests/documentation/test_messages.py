"""The page of messages has what the package says: each warning is on it, and what is on it can be said."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import egcam_lightning
from tests.documentation.pages import PAGES

SAYS = {"warn", "rank_zero_warn", "inform", "MisconfigurationException"}


def text_of(node: ast.AST) -> str:
    """The fixed parts of a message, an ellipsis where a value stands."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text_of, node.values))
    return "…"


TREES = [ast.parse(path.read_text()) for path in Path(egcam_lightning.__file__).parent.rglob("*.py")]
TEXTS = [text_of(node) for tree in TREES for node in ast.walk(tree) if isinstance(node, ast.Constant | ast.JoinedStr)]
QUOTED = re.findall(r"^\| `([^`]+)` \|", PAGES["docs/faq.md"].read_text(), re.MULTILINE)


def is_in(quoted: str, text: str) -> bool:
    return all(part.strip() in text for part in quoted.split("…"))


def test_what_the_page_quotes_the_package_says():
    assert [quoted for quoted in QUOTED if not any(is_in(quoted, text) for text in TEXTS)] == []
    assert len(QUOTED) > 40


def test_every_warning_is_explained():
    calls = [node for tree in TREES for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
    said = [text_of(node.args[0]) for node in calls if getattr(node.func, "id", getattr(node.func, "attr", "")) in SAYS]
    said = [
        text for text in said if len(text.replace("…", "").strip()) > 20
    ]  # of others the text is put together before
    assert len(said) > 20
    assert [text for text in said if not any(is_in(quoted, text) for quoted in QUOTED)] == []
