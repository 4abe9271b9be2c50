"""Patterns match what a shell and Python's glob match."""

from __future__ import annotations

import glob
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from skyrl_modal.transfers.patterns import matches, outermost

NAMES = st.text("ab.", min_size=1, max_size=3).filter(lambda name: name not in (".", ".."))
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
PARTS = st.sampled_from(["*", "**", "?", "[ab]", "[!a]", "a*", "*.b", ".*", "a", "b", "*a*"])


@settings(max_examples=100)
@given(files=st.lists(PATHS, min_size=1, max_size=8), pattern=st.lists(PARTS, min_size=1, max_size=4).map("/".join))
def test_patterns_match_as_glob_does(files: list[str], pattern: str) -> None:
    """A pattern matches the same paths as Python's glob, where one that ends with ** also matches the folder before."""
    pattern = pattern.removesuffix("**") + "*" if pattern.endswith("**") else pattern
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for file in files:
            path = root / file
            if all(parent.is_dir() or not parent.exists() for parent in path.parents) and not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        everything = {path.relative_to(root).as_posix() for path in root.rglob("*")}
        expected = {path.rstrip("/") for path in glob.glob(pattern, root_dir=root, recursive=True)} - {""}

        assert {path for path in everything if matches(path, pattern)} == expected


@given(st.lists(PATHS))
def test_outermost_paths_contain_all_others(paths: list[str]) -> None:
    """Each path is one of the outermost ones or below one, and none of these is below another one."""
    found = outermost(paths)

    assert all(any(path == top or path.startswith(f"{top}/") for top in found) for path in paths)
    assert not any(a != b and a.startswith(f"{b}/") for a in found for b in found)
