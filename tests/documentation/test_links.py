"""Links of the pages lead to files that are there, and to headings that they have; without a network."""

from __future__ import annotations

import re

import pytest

from tests.documentation.pages import PAGES, ROOT, prose

LINK = re.compile(r"(?:!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(|<img src=\")([^)\s\"]+)")


def slug(heading: str) -> str:
    """What a heading is called in an address."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.replace("`", "").lower()).strip())


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    path = PAGES[page]
    broken = []
    for target in LINK.findall(prose(path)):
        if target.startswith(("https://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        headings = re.findall(r"^#+ (.+)$", found.read_text(), re.MULTILINE) if found.suffix == ".md" else []
        if not found.exists() or (anchor and anchor not in map(slug, headings)):
            broken.append(target)
    assert not broken


def test_every_figure_is_shown_somewhere_and_small():
    shown = "".join(path.read_text() for path in PAGES.values())
    figures = list((ROOT / "docs").rglob("*.png"))
    assert figures
    assert [path.name for path in figures if path.name not in shown] == []
    assert [path.name for path in figures if path.stat().st_size > 350_000] == []


def test_every_page_is_in_the_contents():
    listed = (ROOT / "mkdocs.yml").read_text()
    pages = [str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")]
    assert [name for name in pages if name not in listed] == []
