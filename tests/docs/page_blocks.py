"""The code blocks of the pages, and what the tests do with each of them.

==================  ==================================================================================================
language            what is tested
==================  ==================================================================================================
python              executed, all blocks of a page in order (``test_docs.py``)
bash                executed, all blocks of a page in order (``test_shell_blocks.py``), unless it is marked
console             a transcript: the command line accepts its commands (``test_docs.py``). It is not executed
toml, yaml, json    parsed, and checked by a test of its page
text                output. It is not executed
==================  ==================================================================================================

A block is marked by a comment in the line before it: ``<!-- not executed: REASON -->``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: All pages with examples.
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
#: The languages above. Others, such as ``{toctree}``, are directives of Sphinx.
LANGUAGES = {"python", "bash", "console", "toml", "yaml", "json", "text"}

_BLOCK = re.compile(r"^(?:<!-- not executed: ([^\n]*) -->\n)?```([^\s`]*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A code block of a page.

    Attributes:
        page: The file.
        line: Number of its first line of code.
        language: What is behind its first fence; empty if nothing is.
        text: The code.
        reason: Why it is not executed; None if it is.
    """

    page: Path
    line: int
    language: str
    text: str
    reason: str | None


def blocks_of(page: Path, *languages: str) -> list[Block]:
    """Return the code blocks of a page, in all languages if none is named."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, match.start(3)) + 1, match[2], match[3], match[1])
        for match in _BLOCK.finditer(text)
        if not languages or match[2] in languages
    ]
