"""The search for new files that are lost at the end of a run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from skyrl_modal.container.unsaved_files import (
    LostPlace,
    UnsavedFilesReport,
    UnsavedFilesSearch,
    describe_unsaved,
    file_time,
)
from skyrl_modal.protocol.job import Volume
from skyrl_modal.protocol.result import UnsavedFolder
from skyrl_modal.protocol.state import StopReason
from tests.container.records import make_job

MB = 1_000_000


def write(path: Path, size: int) -> Path:
    """Write a file of a size, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))
    return path


@pytest.fixture
def search(tmp_path: Path) -> Callable[..., list[tuple[str, int, int]]]:
    """Return a function that searches ``tmp_path/lost`` for files that are newer than a time."""
    (tmp_path / "lost").mkdir()

    def run(since: float = 0.0, saved: tuple[str, ...] = (), path: str = "/lost") -> list[tuple[str, int, int]]:
        found = UnsavedFilesSearch([LostPlace(path, str(tmp_path / "lost"))], since, saved).run(60)
        return [(item.path, item.files, item.bytes) for item in found]

    return run


def test_files_are_grouped_by_folder(tmp_path: Path, search: Callable[..., list[tuple[str, int, int]]]) -> None:
    """Files are counted in the folder below the place, with the path as the command sees it, the largest first."""
    write(tmp_path / "lost/a/b/c", MB)
    write(tmp_path / "lost/a/d", MB)
    write(tmp_path / "lost/file", 3 * MB)
    write(tmp_path / "lost/small", MB // 2)

    assert search() == [("/lost/file", 1, 3 * MB), ("/lost/a", 2, 2 * MB)]


def test_results_are_found_from_the_first_byte(
    tmp_path: Path, search: Callable[..., list[tuple[str, int, int]]]
) -> None:
    """A small folder is listed if a name in it is that of a result; the path above it does not matter."""
    write(tmp_path / "lost/run/global_step_1/latest", 2)
    write(tmp_path / "lost/x/rows.jsonl", 1)
    write(tmp_path / "lost/y/notes", 1)

    assert search(path="/exports/lost") == [("/exports/lost/run", 1, 2), ("/exports/lost/x", 1, 1)]


def test_older_files_are_not_new(tmp_path: Path, search: Callable[..., list[tuple[str, int, int]]]) -> None:
    """Files from before the start are not counted; files with an old date that are created later are."""
    write(tmp_path / "lost/old", MB)
    since = file_time()
    while file_time() <= since:
        time.sleep(0.001)  # the resolution of the clock of file systems
    new = write(tmp_path / "lost/new", MB)
    os.utime(new, (1, 1))

    assert search(since) == [("/lost/new", 1, MB)]


def test_saved_paths_and_links_are_left_out(tmp_path: Path, search: Callable[..., list[tuple[str, int, int]]]) -> None:
    """Volumes in a place are not searched, and links are not followed."""
    write(tmp_path / "lost/data/a.pt", MB)
    write(tmp_path / "other/b.pt", MB)
    (tmp_path / "lost/link").symlink_to(tmp_path / "other")
    (tmp_path / "lost/loop").symlink_to(".")

    assert search(saved=("/lost/data",)) == []


def test_sparse_file_counts_what_it_occupies(tmp_path: Path, search: Callable[..., list[tuple[str, int, int]]]) -> None:
    """A file with holes has the size that it occupies."""
    with (tmp_path / "lost/sparse").open("wb") as file:
        file.truncate(10**12)

    assert search() == []


def test_search_ends_at_its_timeout(tmp_path: Path) -> None:
    """A search that takes too long ends in time, and is not complete."""
    for number in range(3000):
        write(tmp_path / f"lost/{number % 50}/{number}", 0)
    found = UnsavedFilesSearch([LostPlace("/lost", str(tmp_path / "lost"))], 0.0, ())

    begin = time.monotonic()
    assert found.run(0.0) == []

    assert not found.is_complete
    assert time.monotonic() - begin < 5


def test_missing_place_is_no_error(tmp_path: Path) -> None:
    """A place that does not exist, or is a file, has no new files."""
    places = [LostPlace("/a", str(tmp_path / "none")), LostPlace("/b", str(write(tmp_path / "file", MB)))]
    found = UnsavedFilesSearch(places, 0.0, ())

    assert found.run(60) == []
    assert found.is_complete


def test_report_is_empty_without_a_start_or_after_a_kill(tmp_path: Path) -> None:
    """Nothing is searched before the command has started, and after a kill."""
    job = make_job(tmp_path)
    report = UnsavedFilesReport(job, lambda _: [LostPlace("/lost", str(tmp_path / "lost"))])
    write(tmp_path / "lost/a.pt", MB)
    assert report.find().text == ""

    report.begin()
    while file_time() <= (report._since or 0):
        time.sleep(0.001)  # the resolution of the clock of file systems
    write(tmp_path / "lost/b.pt", MB)

    assert report.find(StopReason.KILL).text == ""
    assert "/lost/b.pt (1 file, 1.0 MB)" in report.find().text


def test_description(tmp_path: Path) -> None:
    """The warning names number and size, the remedy, and that a search was not complete."""
    volume = Volume(name="skyrl-data", mount_path="/root/data")
    folders = [UnsavedFolder(f"/root/{number}", 1200, 2 * 10**9) for number in range(10)]
    folders[0] = UnsavedFolder(os.fsdecode(b"/root/\xff"), 1, 5)

    text = describe_unsaved(folders, make_job(tmp_path, volumes=(volume,)), is_complete=False)

    assert "(not everything was searched): /root/\\xff (1 file, 5 bytes), /root/1 (1,200 files, 2.0 GB), " in text
    assert "and 2 more; write them to a volume, such as /root/data" in text
    assert "declare a volume" in describe_unsaved(folders, make_job(tmp_path), is_complete=True)
