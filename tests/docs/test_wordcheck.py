"""Tests of the check for terms that the style does not allow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import wordcheck

# The word is put together here, so that this file passes its own check.
WORD = "tel" + "ls"


def found_in(root: Path, name: str, text: str) -> list[str]:
    """Write a file and return what the check finds in it."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return [str(match) for match in wordcheck.check(root)]


@pytest.mark.parametrize(
    "code",
    [f"x = '{WORD}'", f"# it {WORD.upper()} why", f"def _{WORD}_why(): ...", f"class {WORD.capitalize()}Why: ..."],
)
def test_package_lines_are_checked(tmp_path: Path, code: str) -> None:
    """Every line of the package is checked, with the parts of names."""
    assert len(found_in(tmp_path, "skyrl_modal/folder/module.py", f"\n{code}\n")) == 1


@pytest.mark.parametrize(
    "name", ["README.md", "docs/page.md", "docs/generated/table.md", ".github/workflows/checks.yml"]
)
def test_pages_are_checked(tmp_path: Path, name: str) -> None:
    """Every line of a page is checked, and is named with its number."""
    assert found_in(tmp_path, name, f"first\nThis page {WORD} why.\n") == [f"{name}:2: {WORD}"]


def test_strings_in_tests_are_not_checked(tmp_path: Path) -> None:
    """In tests, docstrings, comments and names are checked; other strings are not."""
    code = f'def test_it_{WORD}():\n    """It {WORD}."""\n    run("echo {WORD}")  # it {WORD}\n'

    assert [match.partition(": ")[0] for match in found_in(tmp_path, "tests/test_it.py", code)] == [
        "tests/test_it.py:1",
        "tests/test_it.py:2",
        "tests/test_it.py:3",
    ]


def test_longer_terms_are_accepted(tmp_path: Path) -> None:
    """A term that only contains a banned one is accepted."""
    assert found_in(tmp_path, "skyrl_modal/module.py", "hours = keywords + storyteller + hearing + essays\n") == []


def test_marker_with_reason_skips_line(tmp_path: Path) -> None:
    """A line outside the package is skipped if its marker has a reason."""
    marker = "wordcheck: allow"

    assert found_in(tmp_path, "tests/a.py", f"# {WORD}  {marker} (quoted from Ray)\n") == []
    assert len(found_in(tmp_path, "tests/a.py", f"# {WORD}  {marker} ()\n")) == 1
    assert len(found_in(tmp_path, "skyrl_modal/a.py", f"# {WORD}  {marker} (no exceptions in the package)\n")) == 2


def test_command_exits_with_1_for_a_match(tmp_path: Path) -> None:
    """The command prints the matches and exits with 1, and with 0 if there are none."""
    command = [sys.executable, "-m", "tests.support.wordcheck", str(tmp_path)]
    root = Path(__file__).resolve().parents[2]

    clean = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    (tmp_path / "README.md").write_text(f"It {WORD}.\n")
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)

    assert (clean.returncode, clean.stdout) == (0, "")
    assert (found.returncode, found.stdout) == (1, f"README.md:1: {WORD}\n")
