"""Folders with many files, in which files are decided about together."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skyrl_modal.mount import select
from tests.gitfiles.repositories import git, listed_by_git
from tests.gitfiles.trees import make

_STEMS = ["a", "test_a", "log", ".a", "a.b", "Aa", ".env"]
_ENDS = ["", ".log", ".o", ".a", ".pyc", ".py", ".LOG", ".d"]
_NAMES = [stem + end for stem in _STEMS for end in _ENDS]
_PATTERNS = [
    *("*.log", "*.[oa]", "*.py[cod]", "*.py[a-z]", "test_*", "test_*.o", "a*", "*", ".env", "a.log", "*.l?g"),
    *("**/a.log", "deep/*.log", "/many/*.o", "many/**", "a**/x", "*o", "*.[!o]", "many/", "deep/", ".*", "A*.log"),
]
_LINES = st.lists(st.tuples(st.sampled_from(["", "!"]), st.sampled_from(_PATTERNS)).map("".join), max_size=6)


@pytest.mark.usefixtures("no_settings")
@settings(max_examples=20, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(outer=_LINES, inner=_LINES, tracked=st.sets(st.sampled_from(_NAMES), max_size=12), skip_caches=st.booleans())
def test_many_names_are_decided_as_by_git(
    outer: list[str], inner: list[str], tracked: set[str], skip_caches: bool
) -> None:
    """Files that are decided about together are those that git lists, and have the reasons that ``explain`` returns."""
    with tempfile.TemporaryDirectory() as place:
        root = make(Path(place).resolve(), {f"{folder}/{name}": "" for folder in ("many", "deep/e") for name in _NAMES})
        make(root, {".gitignore": "\n".join(outer), "many/.gitignore": "\n".join(inner)})
        git("init", "-q", cwd=root)
        git("add", "-f", ".gitignore", *(f"many/{name}" for name in sorted(tracked)), cwd=root)

        assert list(select(root).files) == listed_by_git(root)

        selection = select(root, skip_caches=skip_caches)
        for path, reason, _ in selection.exclusions[::4]:
            assert selection.explain(path.rstrip("/")) in (
                f"{path} is excluded: {reason}",
                f"{path} is excluded (except for some files in it): {reason}",
            )
        selected, excluded = set(selection.files), {path for path, _, _ in selection.exclusions}
        for name in _NAMES:
            for path in (f"many/{name}", f"deep/e/{name}"):
                folders = {f"{parent}/" for parent in Path(path).parents}
                assert path not in excluded if path in selected else path in excluded or folders & excluded
