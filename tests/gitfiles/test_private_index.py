"""The refreshed copy of a stale index, and that it never changes the number of changed files."""

from __future__ import annotations

import os
import random
import shlex
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from skyrl_modal.gitfiles import result_cache
from skyrl_modal.gitfiles.git_command import find_git
from skyrl_modal.gitfiles.result_cache import ResultCache, has_settled
from skyrl_modal.gitfiles.status import read_status
from tests.gitfiles.repositories import git
from tests.gitfiles.test_status import count_changes
from tests.gitfiles.trees import commit, make

NAMES = [f"{folder}{name}" for folder in ("", "a/", "a/b/", "c/") for name in ("x.py", "y.py", "z", "w w")]


def age(root: Path) -> None:
    """Give all files an old time of modification, so that only the status change shows that they are new."""
    for path in root.rglob("*"):
        if ".git" not in path.relative_to(root).parts and path.is_file():
            os.utime(path, (1_000_000, 1_000_000))


@pytest.fixture
def stale(tmp_path: Path, no_settings: Path) -> Path:
    """A checkout that was copied with its index, as by ``cp -a``: every status in the index is wrong."""
    original = make(tmp_path / "original", {name: f"{name}\n" * 30 for name in NAMES})
    git("init", "-q", cwd=original)
    age(original)
    git("add", ".", cwd=original)
    commit(original)
    shutil.copytree(original, tmp_path / "r", symlinks=True)
    return tmp_path / "r"


@pytest.fixture
def cache(tmp_path: Path) -> ResultCache:
    """An empty cache."""
    return ResultCache(tmp_path / "cache")


@pytest.fixture
def compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Returns the files whose content git compares since the last call, because their status is not in its index."""
    log = tmp_path / "compared"
    program = shlex.quote(str(find_git(tmp_path)))
    fake = make(
        tmp_path / "bin",
        {"git": f'#!/bin/sh\n{program} diff-files --name-only >> {shlex.quote(str(log))}\nexec {program} "$@"\n'},
    )
    (fake / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(fake), prepend=os.pathsep)

    def read() -> list[str]:
        names = log.read_text().splitlines()
        log.write_text("")
        return names

    return read


def changed(root: Path, cache: ResultCache) -> int | None:
    """Return the number of changed files."""
    status = read_status(root, cache)
    assert status is not None
    return status.changed_files


def wait_until_settled(root: Path) -> None:
    """Wait until the status of the files shows every further change."""
    paths = [root / name for name in NAMES]
    while not all(has_settled(path.stat(), time.time_ns()) for path in paths):
        time.sleep(0.05)


def edit(path: Path, times: os.stat_result) -> None:
    """Change a file without a change of its size and of its time of modification."""
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_stale_index_is_compared_once(stale: Path, cache: ResultCache, compared: Callable[[], list[str]]) -> None:
    """The first call compares all files, later ones only those that have changed. The checkout is not written."""
    wait_until_settled(stale)
    before = (stale / ".git" / "index").read_bytes(), sorted(os.listdir(stale / ".git"))
    assert changed(stale, cache) == 0
    assert sorted(compared()) == sorted(NAMES)
    assert changed(stale, cache) == 0
    assert compared() == []
    edit(stale / "a" / "x.py", (stale / "a" / "x.py").stat())
    assert changed(stale, cache) == 1
    assert compared() == ["a/x.py"]
    (stale / "z").rename(stale / "old z")
    (stale / "w w").rename(stale / "z")
    (stale / "old z").rename(stale / "w w")
    assert changed(stale, cache) == 3
    assert ((stale / ".git" / "index").read_bytes(), sorted(os.listdir(stale / ".git"))) == before
    assert len(os.listdir(cache.folder or "")) == 1


@pytest.mark.parametrize("case", range(8))
def test_edits_within_the_resolution_of_the_clock(stale: Path, cache: ResultCache, case: int) -> None:
    """A file that is edited right after a call, with its size and time, counts as changed at the next call."""
    draw = random.Random(case)
    edited: set[str] = set()
    for name in draw.sample(NAMES, 6):
        times = (stale / name).stat()
        assert changed(stale, cache) == len(edited)
        if draw.random() < 0.5:
            edit(stale / name, times)
        else:
            shutil.copy2(stale / name, stale / "new")
            edit(stale / "new", times)
            (stale / "new").replace(stale / name)
        edited.add(name)
    assert changed(stale, cache) == len(edited)


@pytest.mark.parametrize("case", range(6))
def test_random_changes_with_a_stored_copy(
    stale: Path, cache: ResultCache, case: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After random changes of files and index the number is the one without a cache, and the one of git status."""
    monkeypatch.setattr(result_cache, "SETTLING_NS", 0)
    draw = random.Random(case)
    actions: list[Callable[[Path], object]] = [
        lambda path: make(stale, {str(path.relative_to(stale)): str(draw.random())}),
        lambda path: path.unlink(missing_ok=True),
        lambda path: path.exists() and path.chmod(draw.choice([0o644, 0o755])),
        lambda path: path.exists() and os.utime(path, (1, draw.randrange(1000))),
        lambda path: git("add", "--all", ".", cwd=stale),
        lambda path: git("reset", "-q", cwd=stale),
        lambda path: git("stash", "-q", cwd=stale) if draw.random() < 0.2 else None,
        lambda path: git("status", cwd=stale),
    ]
    for _ in range(12):
        draw.choice(actions)(stale / draw.choice(NAMES))
        assert changed(stale, cache) == changed(stale, ResultCache(None)) == count_changes(stale)


def test_settings_and_attributes_decide_again(
    stale: Path, cache: ResultCache, compared: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a change of a setting or of the attributes all files are compared again."""
    monkeypatch.setattr(result_cache, "SETTLING_NS", -3_000_000_000)
    for _ in range(2):
        assert changed(stale, cache) == 0
    assert sorted(compared()) == sorted(NAMES)
    git("config", "core.autocrlf", "input", cwd=stale)
    compared()
    assert changed(stale, cache) == 0
    assert sorted(compared()) == sorted(NAMES)
    make(stale, {".git/info/attributes": "* text\n"})
    assert changed(stale, cache) == 0
    assert sorted(compared()) == sorted(NAMES)


@pytest.mark.parametrize("form", ["split", "version 4", "untracked cache", "submodule"])
def test_uncommon_forms_with_a_cache(
    tmp_path: Path, stale: Path, cache: ResultCache, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index of any form gives the number of git status, and nothing is written to the repository."""
    monkeypatch.setattr(result_cache, "SETTLING_NS", -3_000_000_000)
    if form == "split":
        git("config", "core.splitIndex", "true", cwd=stale)
        git("update-index", "--split-index", cwd=stale)
    elif form == "version 4":
        git("update-index", "--index-version", "4", cwd=stale)
    elif form == "untracked cache":
        git("update-index", "--untracked-cache", cwd=stale)
    else:
        git("-c", "protocol.file.allow=always", "submodule", "-q", "add", str(tmp_path / "original"), "s", cwd=stale)
        make(stale, {"s/z": "changed"})
    make(stale, {"z": "changed"})
    before = {path: path.read_bytes() for path in (stale / ".git").rglob("*") if path.is_file()}
    for _ in range(3):
        assert changed(stale, cache) == count_changes(stale)
    assert {path: path.read_bytes() for path in (stale / ".git").rglob("*") if path.is_file()} == before


def test_several_threads_share_a_copy(stale: Path, cache: ResultCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls at the same time give the same number, and leave one file in the cache."""
    monkeypatch.setattr(result_cache, "SETTLING_NS", -3_000_000_000)
    make(stale, {"z": "changed"})
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: changed(stale, cache), range(8))) == {1}
    assert len(os.listdir(cache.folder or "")) == 1
