"""Results that are stored in the user's cache: a problem of the cache is a miss."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from skyrl_modal.gitfiles import result_cache
from skyrl_modal.gitfiles.result_cache import NO_CACHE, ResultCache


def test_results_are_found_by_their_name(tmp_path: Path) -> None:
    """A result has the content that was stored last under its name, in a private file."""
    cache = ResultCache(tmp_path / "a" / "results")
    assert cache.load("x") is None
    cache.save("x", b"1")
    cache.save("y/\udcff", b"")
    cache.save("x", b"2" * 1000)
    assert (cache.load("x"), cache.load("y/\udcff"), cache.load("z")) == (b"2" * 1000, b"", None)
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "a", tmp_path / "a" / "results")] == [0o700, 0o700]
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "a" / "results").iterdir()] == [0o600, 0o600]


@pytest.mark.parametrize("cache", [NO_CACHE, ResultCache(Path("~/results"))])
def test_without_a_folder_nothing_is_stored(
    cache: ResultCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a folder, or with one that is a relative path, nothing is written."""
    monkeypatch.chdir(tmp_path)
    cache.save("x", b"1")
    assert cache.load("x") is None
    assert list(tmp_path.iterdir()) == []


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "extended": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "another byte": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "named pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "link": lambda path: (path.rename(path.with_name("moved")), path.symlink_to("moved")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_results_are_misses(tmp_path: Path, damage: str) -> None:
    """A file that is not exactly as it was stored is not used, and saving does not fail."""
    cache = ResultCache(tmp_path)
    cache.save("x", b"content")
    [path] = tmp_path.iterdir()
    DAMAGES[damage](path)
    assert cache.load("x") is None
    cache.save("x", b"content")
    assert cache.load("x") in (b"content", None if damage == "folder" else b"content")


def test_results_of_another_name_are_misses(tmp_path: Path) -> None:
    """A file that was renamed to the name of another result is not used."""
    cache = ResultCache(tmp_path)
    cache.save("x", b"of x")
    [path] = tmp_path.iterdir()
    content = path.read_bytes()
    cache.save("y", b"of y")
    [other] = [item for item in tmp_path.iterdir() if item != path]
    other.write_bytes(content)
    assert (cache.load("x"), cache.load("y")) == (b"of x", None)


@pytest.mark.parametrize("limit", ["number", "bytes"])
def test_oldest_results_are_removed(tmp_path: Path, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limits the results that were stored first are removed, and files of killed processes."""
    if limit == "number":
        monkeypatch.setattr(result_cache, "MAX_RESULTS", 3)
    else:
        monkeypatch.setattr(result_cache, "MAX_TOTAL_BYTES", 3 * 1032 + 100)
    cache = ResultCache(tmp_path)
    (tmp_path / ".new-left").touch()
    os.utime(tmp_path / ".new-left", (1, 1))
    for number in range(5):
        cache.save(str(number), b"x" * 1000)
        for path in tmp_path.iterdir():
            os.utime(path, ns=(1, path.stat().st_mtime_ns - 1_000_000_000))
    assert [number for number in range(5) if cache.load(str(number))] == [2, 3, 4]
    assert len(list(tmp_path.iterdir())) == 3


def test_several_threads_use_one_cache(tmp_path: Path) -> None:
    """A result is always one of those that were stored, never a mixture."""
    cache = ResultCache(tmp_path)
    contents = [bytes([number]) * 10_000 for number in range(8)]

    def use(content: bytes) -> bool:
        for _ in range(20):
            cache.save("x", content)
            if cache.load("x") not in contents:
                return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, contents))
    assert len(list(tmp_path.iterdir())) == 1
