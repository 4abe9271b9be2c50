"""Find terms that the project's style does not allow: ``python -m tests.support.wordcheck``.

The terms describe programs as if they were people. A sentence that needs one of them is usually clearer when its
subject is a function, a process or an event: see "Language" in CONTRIBUTING.md.

Every line of the package and of the documentation is checked. In other Python files, only comments, docstrings and
names are checked, since strings there often hold the output of commands. Outside the package, a line is skipped if it
contains the marker ``wordcheck: allow (REASON)``.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
BANNED_TERMS = (
    "tell", "tells", "told", "say", "says", "said", "words", "hear", "hears", "heard",
    "nobody", "somebody", "whoever", "ours",
)  # fmt: skip
#: The parts of a name are checked one by one: snake_case and camelCase.
_BANNED = re.compile(rf"(?<![A-Za-z])(?:{'|'.join(BANNED_TERMS)})(?![A-Za-z])", re.IGNORECASE)
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_MARKER = re.compile(r"wordcheck: allow \([^()]+\)")

PACKAGE = ("skyrl_modal/**/*.py",)
PAGES = (
    "*.md",
    "docs/**/*.md",
    "docs/conf.py",
    "tests/**/*.md",
    "examples/**/*.ipynb",
    ".github/**/*",
    "pyproject.toml",
)
CODE = ("noxfile.py", "tests/**/*.py", "examples/**/*.py", "benchmarks/**/*.py")


class Line(NamedTuple):
    """A piece of text with the number of its line."""

    number: int
    text: str


class Match(NamedTuple):
    """A banned word and its position."""

    path: Path
    number: int
    word: str

    def __str__(self) -> str:
        return f"{self.path}:{self.number}: {self.word}"


def find_matches(path: Path, lines: Iterable[Line]) -> Iterator[Match]:
    """Return the banned terms in some lines of a file."""
    for number, text in lines:
        for match in _BANNED.finditer(_HUMP.sub("_", text)):
            yield Match(path, number, match[0])


def all_lines(text: str) -> Iterator[Line]:
    """Return every line of a text."""
    for number, line in enumerate(text.splitlines(), 1):
        yield Line(number, line)


def prose_and_names(source: str) -> Iterator[Line]:
    """Return the comments, names and docstrings of Python source code."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.NAME):
            yield Line(token.start[0], token.string)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is None:
                continue
            docstring = node.body[0]
            for number, line in enumerate(source.splitlines()[docstring.lineno - 1 : docstring.end_lineno]):
                yield Line(docstring.lineno + number, line)


def without_marked(text: str, lines: Iterable[Line]) -> Iterator[Line]:
    """Return the lines that do not carry the marker."""
    marked = {number for number, line in all_lines(text) if _MARKER.search(line)}
    return (line for line in lines if line.number not in marked)


def files(root: Path, patterns: Iterable[str]) -> list[Path]:
    """Return the files that match the patterns, without build output and hidden environments."""
    found = {path for pattern in patterns for path in root.glob(pattern) if path.is_file()}
    return sorted(path for path in found if not {"_build", "__pycache__"} & set(path.relative_to(root).parts))


def check(root: Path) -> list[Match]:
    """Return the banned terms in a repository."""
    matches: list[Match] = []
    for patterns, select in ((PACKAGE, None), (PAGES, all_lines), (CODE, prose_and_names)):
        for path in files(root, patterns):
            text = path.read_text(encoding="utf-8")
            lines = all_lines(text) if select is None else without_marked(text, select(text))
            matches += find_matches(path.relative_to(root), lines)
    return sorted(matches)


def main() -> int:
    """Print each banned word with its file and line. Return 1 if there is one."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.wordcheck", description=__doc__.split("\n")[0])
    parser.add_argument("root", nargs="?", type=Path, default=ROOT, help="the repository (default: this one)")
    matches = check(parser.parse_args().root)
    for match in matches:
        print(match)
    return 1 if matches else 0


if __name__ == "__main__":
    sys.exit(main())
