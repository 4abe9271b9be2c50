"""Tests of the statements in CONTRIBUTING.md about the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import skyrl_modal

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "CONTRIBUTING.md"
#: The folder with the package that is tested, which can be an installed wheel.
SOURCES = Path(skyrl_modal.__file__).parents[1]


def table_rows() -> list[tuple[str, str, str]]:
    """Return question, file and symbol of each row of the table."""
    section = PAGE.read_text(encoding="utf-8").partition("## Where is what?")[2]
    return re.findall(r"^\| (.+\?) \| `([\w./]+): ([\w.]+)` \|$", section, re.MULTILINE)


def definitions(body: list[ast.stmt]) -> Iterator[tuple[str, list[ast.stmt]]]:
    """Yield the names that some statements define, with the statements of a class."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield node.name, node.body
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, []
        elif isinstance(node, ast.Assign):
            yield from ((target.id, []) for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, []


def is_defined(source: str, symbol: str) -> bool:
    """Return whether Python source code defines a name such as ``Class.method``."""
    body = ast.parse(source).body
    for part in symbol.split("."):
        found = dict(definitions(body))
        if part not in found:
            return False
        body = found[part]
    return True


def test_table_has_at_least_20_questions() -> None:
    """Every row of the table is read, and there are at least 20."""
    section = PAGE.read_text(encoding="utf-8").partition("## Where is what?")[2]
    rows = [line for line in section.splitlines() if line.startswith("| ")]

    assert len(table_rows()) == len(rows) - 1  # without the heading
    assert len(table_rows()) >= 20


@pytest.mark.parametrize(("question", "path", "symbol"), table_rows())
def test_answer_names_an_existing_symbol(question: str, path: str, symbol: str) -> None:
    """The file of each answer exists and defines the symbol."""
    assert is_defined((SOURCES / path).read_text(encoding="utf-8"), symbol), f"{question} {path}: {symbol}"


def test_symbols_are_found_in_classes_and_modules() -> None:
    """A symbol is found only where it is defined."""
    source = "A = 1\nB: int = 2\nclass C:\n    d = 3\n    def e(self): ...\nimport f\n"

    assert [name for name in ("A", "B", "C", "C.d", "C.e", "d", "f", "C.A", "A.B") if is_defined(source, name)] == [
        "A",
        "B",
        "C",
        "C.d",
        "C.e",
    ]


def layout_entries() -> list[str]:
    """Return the paths in the tree of the package."""
    tree = PAGE.read_text(encoding="utf-8").partition("```text\nskyrl_modal/\n")[2].partition("tests/")[0]
    return [name for line in tree.splitlines() for name in re.findall(r"[\w/]+(?:\.py|/)", line[:23])]


def test_layout_lists_all_modules_and_folders() -> None:
    """The tree lists every module and folder of the package, and nothing else."""
    package = Path(skyrl_modal.__file__).parent
    existing = {path.name for path in package.glob("*.py")} | {
        f"{path.parent.name}/" for path in package.glob("*/*.py")
    }

    assert set(layout_entries()) == existing
