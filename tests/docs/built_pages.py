"""Checks the built documentation: no page loads anything from another host, and its search and themes are in it.

.. code-block:: bash

    python -m tests.docs.built_pages docs/_build/html
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

#: What a browser loads by itself. Links that a reader follows are not among it.
_LOADED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed)\b[^>]*?\bsrc(?:set)?\s*=\s*["']\s*((?:https?:)?//[^"'>]+)"""
    r"""|<link\b[^>]*?\bhref\s*=\s*["']((?:https?:)?//[^"'>]+)"""
    r"""|url\(\s*["']?((?:https?:)?//[^"')]+)"""
    r"""|@import\s+["']((?:https?:)?//[^"']+)""",
    re.IGNORECASE,
)


def foreign_addresses(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield each address of another host that a page or a style sheet loads, with the file."""
    for file in sorted(folder.rglob("*")):
        if file.suffix in (".html", ".css", ".svg"):
            for match in _LOADED.finditer(file.read_text(encoding="utf-8")):
                yield file, next(address for address in match.groups() if address)


def missing_parts(folder: Path) -> list[str]:
    """Return what a reader without a network needs and the folder does not have."""
    needed = (
        "search.html",
        "searchindex.js",
        "_static/searchtools.js",
        "_static/copybutton.js",
        "_static/clipboard.min.js",
    )
    missing = [name for name in needed if not (folder / name).is_file()]
    index = (folder / "index.html").read_text(encoding="utf-8")
    return missing + [text for text in ("theme-toggle", "sidebar-search") if text not in index]


if __name__ == "__main__":
    root = Path(sys.argv[1])
    problems = [f"{file.relative_to(root)} loads {address}" for file, address in foreign_addresses(root)]
    problems += [f"there is no {name}" for name in missing_parts(root)]
    sys.exit("\n".join(problems) or None)
