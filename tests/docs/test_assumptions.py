"""The page on assumptions names tests of the loopback and of Modal that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "modal-assumptions.md").read_text(encoding="utf-8")
RECORDED = ROOT / "tests" / "support" / "loopback" / "test_as_recorded.py"
LIVE = ROOT / "tests" / "live" / "test_statements.py"


def functions(path: Path) -> set[str]:
    """Return the names of the test functions in a file."""
    return set(re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))


def rows() -> list[list[str]]:
    """Return the cells of the rows about what users have recorded."""
    section = PAGE.partition("## What users of Modal have recorded")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ") and not line.startswith("| statement")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_each_statement_has_existing_tests() -> None:
    """Each row has four cells, the third and fourth of which name existing tests."""
    assert len(rows()) > 25
    for row in rows():
        assert len(row) == 4, row
        for name in re.findall(r"`(test_\w+)`", row[2]):
            assert name in functions(RECORDED), name
        for name in re.findall(r"`(test_\w+)`", row[3]):
            assert name in functions(LIVE), name


@pytest.mark.parametrize("path", [RECORDED, LIVE])
def test_each_test_is_named_on_the_page(path: Path) -> None:
    """Every statement that is tested is on the page."""
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert functions(path) <= named
