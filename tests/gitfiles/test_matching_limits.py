"""Matching takes a time proportional to pattern length times path length, and long ignore files are indexed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skyrl_modal.gitfiles import ignore_file, regex_index
from skyrl_modal.gitfiles.ignore_file import IgnoreFile, parse_ignore_file
from skyrl_modal.gitfiles.matcher import RuleStack
from skyrl_modal.mount import select
from tests.gitfiles.repositories import git, listed_by_git
from tests.gitfiles.trees import has_warning, make

CASES = int(os.environ.get("SKYRL_MODAL_CASES", "1000"))
MEGABYTE = 1_000_000
LINES = 200_000


def wildmatch(pattern: str, path: str) -> bool:
    """Match a path with a table of all positions: ``*``, ``?``, and ``**`` as a whole part, without classes."""
    parts, names = pattern.split("/"), path.split("/")
    table = [[False] * (len(names) + 1) for _ in range(len(parts) + 1)]
    table[len(parts)][len(names)] = True
    for row in reversed(range(len(parts))):
        for column in reversed(range(len(names) + 1)):
            if parts[row] == "**":
                # As the last part it matches one name or more.
                rest = table[row + 1][column] if row < len(parts) - 1 else column == len(names) - 1
                table[row][column] = rest or (column < len(names) and table[row][column + 1])
            elif column < len(names):
                table[row][column] = table[row + 1][column + 1] and matches_name(parts[row], names[column])
    return table[0][0]


def matches_name(pattern: str, name: str) -> bool:
    """Match one name with a table of all positions."""
    row = [True] + [False] * len(name)
    for letter in pattern:
        if letter == "*":
            following = row[:1]
            for column in range(len(name)):
                following.append(following[-1] or row[column + 1])
        else:
            following = [False] + [row[column] and letter in ("?", name[column]) for column in range(len(name))]
        row = following
    return row[-1]


names = st.text(alphabet="ab", min_size=1, max_size=7)
pattern_parts = st.text(alphabet="ab*?", min_size=1, max_size=9).filter(lambda text: "**" not in text) | st.just("**")


@settings(max_examples=CASES)
@given(st.lists(pattern_parts, min_size=1, max_size=6), st.lists(names, min_size=1, max_size=6))
def test_matches_as_a_table_of_positions(pattern: list[str], path: list[str]) -> None:
    """A pattern with any number of stars and ``**`` matches the same paths as an implementation without regexes."""
    line = "/" + "/".join(pattern)
    stack = RuleStack().extended(parse_ignore_file(line.encode(), "x"), b"")
    folder = "".join(f"{name}/" for name in path[:-1])
    found = stack.find_rule(folder.encode(), path[-1].encode(), False)
    assert (found is not None) == wildmatch(line[1:], "/".join(path))


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("pattern", "folder", "name"),
    [
        ("*a" * 120 + "*b", "", "a" * 255),
        ("?*" * 120 + "b", "", "a" * 255),
        ("[ab]*" * 100 + "c", "", "ab" * 127),
        ("**/*a*a*/" * 60 + "b", "a/" * 1500, "a"),
        ("/" + "**/a/" * 200 + "b", "a/" * 2000, "c"),
        ("/" + "*/" * 300 + "**/*a*a*b", "a/" * 1500, "a" * 255),
        ("foo**/" + "a/**/" * 100 + "b", "foo/" + "a/" * 1500, "c"),
        ("/a" + "*a" * 1000 + "/b", "a" * 4000 + "/", "b"),
    ],
)
def test_patterns_with_many_stars(pattern: str, folder: str, name: str) -> None:
    """A pattern for which a search by trial and error would need years is matched."""
    stack = RuleStack().extended(parse_ignore_file(pattern.encode(), "x"), b"")
    found = stack.find_rule(folder.encode(), name.encode(), False)
    assert (found is not None) == pattern.startswith("/a*a")


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "line",
    [
        "a" * MEGABYTE, "*" * MEGABYTE, "?" * MEGABYTE, "*a" * (MEGABYTE // 2), "**/" * (MEGABYTE // 3) + "zz",
        "[a]" * (MEGABYTE // 3), "[" * MEGABYTE, "[" + "[:" * (MEGABYTE // 2) + "]", "[" + "a" * MEGABYTE + "]",
        "/" * MEGABYTE, "a/" * (MEGABYTE // 2), "a" + " " * MEGABYTE, "\\ " * (MEGABYTE // 2),
        "**\\/" * (MEGABYTE // 4), "!" * MEGABYTE, "*?" * (MEGABYTE // 2),
    ],
    ids=lambda line: line[:8],
)  # fmt: skip
def test_long_lines(tmp_path: Path, no_settings: Path, line: str) -> None:
    """A line of 1 MB is read in linear time, selects what git selects, and is shortened in messages."""
    root = make(tmp_path / "r", {".gitignore": line + "\n", "a": "", "b/c": "", "b/zz": ""})
    git("init", "-q", cwd=root)
    selection = select(root)
    # git 2.39 itself needs minutes for the first two and crashes for the others, because it is recursive.
    if not line.startswith(("*?", "*a", "**/", "**\\/")):
        assert list(selection.files) == listed_by_git(root)
    assert all(len(warning) < 1000 for warning in selection.warnings)
    assert all(len(reason) < 1000 for reason in selection.excluded.values())


FORMS = ["name%d", "/name%d", "folder%d/name", "name%d/", "!name%d", "*.s%d"]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("form", FORMS)
def test_long_ignore_files_are_indexed(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For 200,000 lines without wildcards, or with one at the beginning, no regex is compiled or tried."""
    tried: list[object] = []
    monkeypatch.setattr(regex_index._Alternation, "find_last", lambda *call: tried.append(call) or -1)
    monkeypatch.setattr(regex_index._Alternation, "find_all", lambda *call: tried.append(call) or [])
    file = parse_ignore_file("".join(form % number + "\n" for number in range(LINES)).encode(), "x")
    stack = RuleStack().extended(file, b"")
    text = (form % 123456).strip("!*").encode()
    folder, _, name = text.strip(b"/").rpartition(b"/")
    found = stack.find_rule(folder + b"/" if folder else b"", name, True)
    assert found is not None
    assert found.lineno == 123457
    assert not tried


@pytest.mark.parametrize("form", ["pre%d*", "*/name%d*x", "folder%d*/name", "*a%d-b", "glued%d**/name"])
def test_many_wildcards_are_indexed(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 5,000 patterns with a literal beginning or end, only the regexes that fit a name are compiled."""
    created: list[regex_index._Alternation] = []
    original = regex_index._Alternation.__init__

    def record(self: regex_index._Alternation, items: Sequence[regex_index.IndexedRegex]) -> None:
        original(self, items)
        created.append(self)

    monkeypatch.setattr(regex_index._Alternation, "__init__", record)
    file = parse_ignore_file("".join(form % number + "\n" for number in range(5000)).encode(), "x")
    stack = RuleStack().extended(file, b"")
    text = (form % 1234).replace("**/", "/").replace("*", "q").encode()
    folder, _, name = text.rpartition(b"/")
    found = stack.find_rule(folder + b"/" if folder else b"", name, False)
    assert found is not None
    assert found.lineno == 1235
    # Its expression is compiled at the first use, and then is an attribute.
    assert sum("_combined" in vars(alternation) for alternation in created) <= 10


def test_too_many_lines(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ignore file with more lines than the limit is not applied, and a warning reports it."""
    monkeypatch.setattr(ignore_file, "MAX_IGNORE_LINES", 10)
    make(tree, {"sub/.gitignore": "\n" * 11 + "a\n", "sub/a": ""})
    selection = select(tree)
    assert "sub/a" in selection.files
    assert has_warning(selection, "sub/.gitignore", "more than 10 lines", "not applied")


def test_messages_about_lines_are_limited(tree: Path) -> None:
    """Of 1,000 lines that match nothing, 20 are reported with their text, and the others are counted."""
    make(tree, {"pkg/.gitignore": "[a\n" * 1000})
    warnings = [warning for warning in select(tree).warnings if "pkg/.gitignore" in warning]
    assert len(warnings) == 21
    assert "980 more lines" in warnings[-1]


def test_equal_names_keep_their_last_line() -> None:
    """The last of equal lines decides, among plain names and other rules for the same name."""
    file = parse_ignore_file(b"a\n!a\nb\n!b\nb\n", "x")
    stack = RuleStack().extended(file, b"")
    rules = [stack.find_rule(b"", name, False) for name in (b"a", b"b")]
    assert [(rule.lineno, rule.negated) for rule in rules if rule is not None] == [(2, True), (5, False)]
    assert not IgnoreFile()
