"""Tests of the glossary."""

from __future__ import annotations

import re

from tests.docs.page_blocks import ROOT

GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")


def terms() -> list[str]:
    """Return the terms that the glossary defines."""
    return re.findall(r"^(\w[^\n]*)\n  \S", GLOSSARY, re.MULTILINE)


def test_terms_are_sorted_and_used() -> None:
    """The terms are in alphabetical order, and each is used on several pages."""
    assert terms() == sorted(terms(), key=str.lower)
    pages = [page for page in (ROOT / "docs").glob("*.md") if page.name != "glossary.md"]
    texts = [page.read_text(encoding="utf-8").lower() for page in pages]
    for term in terms():
        using = [text for text in texts if re.search(rf"\b{re.escape(term.lower())}s?\b", text)]
        assert len(using) >= 3, term
