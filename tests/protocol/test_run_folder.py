"""Tests of the files of a run's folder."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from skyrl_modal.protocol.codec import ProtocolError
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.result import RunResultRecord
from skyrl_modal.protocol.run_folder import RunFolder, write_all, write_atomically, write_record
from skyrl_modal.protocol.state import RunState
from skyrl_modal.protocol.status import StatusRecord

JOB = Job(run_id="r1", command="true", workdir="/", run_folder="/data/r1", created_at="2026-01-01T00:00:00+00:00")
RESULT = RunResultRecord(
    run_id="r1", state=RunState.FAILED, returncode=3, attempts=1, started_at=JOB.created_at, duration=1.5
)


def make_result(detail: str) -> RunResultRecord:
    """Return a result with a detail."""
    return replace(RESULT, detail=detail)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount and return a file system of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"this user cannot mount a file system: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(folder: Path) -> None:
    """Use all free space of a small file system."""
    with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass


def test_records_are_written_and_read(tmp_path: Path) -> None:
    """Status and result are read as they were written."""
    folder = RunFolder(tmp_path)
    status = StatusRecord(state=RunState.RUNNING, attempt=2, dashboard_url="http://127.0.0.1:8265")

    folder.write_job(JOB)
    folder.write_status(status)
    folder.write_result(RESULT)

    assert (folder.read_status(), folder.read_result()) == (status, RESULT)
    assert sorted(os.listdir(tmp_path)) == ["job.json", "result.json", "state.json"]


def test_missing_records_are_none(tmp_path: Path) -> None:
    """A folder without records, or a folder that does not exist, has no status, result or output."""
    for folder in (RunFolder(tmp_path), RunFolder(tmp_path / "none")):
        assert (folder.read_status(), folder.read_result(), list(folder.read_output())) == (None, None, [])


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"schema_version": 99}'])
def test_damaged_record_raises(tmp_path: Path, content: str) -> None:
    """A result that is damaged, or has a newer schema, raises ProtocolError."""
    (tmp_path / "result.json").write_text(content)

    with pytest.raises(ProtocolError):
        RunFolder(tmp_path).read_result()


def test_removed_result_is_not_read(tmp_path: Path) -> None:
    """A removed result reads as None. Removing it again does nothing."""
    folder = RunFolder(tmp_path)
    folder.write_result(RESULT)

    folder.remove_result()
    folder.remove_result()

    assert folder.read_result() is None


def test_output_is_read_completely(tmp_path: Path) -> None:
    """The pieces of the output make up the file."""
    content = os.urandom(3_000_000)
    (tmp_path / "output.log").write_bytes(content)

    assert b"".join(RunFolder(tmp_path).read_output()) == content


def test_readers_see_complete_records_only(tmp_path: Path) -> None:
    """A reader finds the old record or the new one while another thread writes."""
    folder, done = RunFolder(tmp_path), threading.Event()
    results = [make_result(letter * 100_000) for letter in "ab"]
    folder.write_result(results[0])

    def write() -> None:
        for number in range(200):
            folder.write_result(results[number % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert folder.read_result() in results
    writer.join()


def test_result_uses_the_space_of_the_status(small_disk: Path) -> None:
    """On a full disk the result takes the space of the status, which is then removed."""
    folder = RunFolder(small_disk)
    folder.write_status(StatusRecord(state=RunState.RUNNING))
    fill(small_disk)

    folder.write_result(RESULT)

    assert folder.read_result() == RESULT
    assert not (small_disk / "state.json").exists()


def test_full_disk_keeps_the_old_file(small_disk: Path) -> None:
    """A write that fails leaves the old content and no temporary file."""
    path = small_disk / "record"
    path.write_bytes(b"old")
    fill(small_disk)

    with pytest.raises(OSError, match="No space") as caught:
        write_atomically(path, b"new" * 10_000)

    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old"
    assert sorted(os.listdir(small_disk)) == ["filler", "record"]


def test_permissions_of_a_record(tmp_path: Path) -> None:
    """A record that only the user may read is never readable by others."""
    write_record(tmp_path / "record", RESULT, mode=0o600)

    assert stat.S_IMODE((tmp_path / "record").stat().st_mode) == 0o600


def test_write_all_to_a_slow_pipe() -> None:
    """All bytes reach the reader of a pipe whose buffer is smaller."""
    reader, writer = os.pipe()
    content = os.urandom(1_000_000)

    def write() -> None:
        write_all(writer, content)
        os.close(writer)

    thread = threading.Thread(target=write)
    thread.start()
    with os.fdopen(reader, "rb") as file:
        assert file.read() == content
    thread.join()


def make_hostile(path: Path, kind: str) -> None:
    """Put something at a path that is not a record."""
    if kind == "folder":
        path.mkdir()
    elif kind == "named pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(path.parent):
            server.bind(path.name)
    elif kind == "sparse file of 1 GB":
        with path.open("wb") as file:
            file.truncate(10**9)
    else:
        target = path.name if kind == "link to itself" else kind.removeprefix("link to ")
        if target == "a pipe":
            os.mkfifo(path.with_name("pipe"))
            target = "pipe"
        path.symlink_to(target)


HOSTILE = [
    "folder", "named pipe", "socket", "sparse file of 1 GB",
    "link to /etc/passwd", "link to itself", "link to a pipe", "link to /dev/zero", "link to absent",
]  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_only_regular_files_are_records(tmp_path: Path, kind: str) -> None:
    """What is not a regular file of bounded size raises ProtocolError, without blocking or reading it."""
    folder = RunFolder(tmp_path)
    make_hostile(tmp_path / "result.json", kind)

    with pytest.raises(ProtocolError):
        folder.read_result()

    folder.write_result(RESULT) if kind != "folder" else None
    assert kind == "folder" or folder.read_result() == RESULT


@pytest.mark.parametrize("kind", [kind for kind in HOSTILE if "sparse" not in kind])
def test_output_must_be_a_regular_file(tmp_path: Path, kind: str) -> None:
    """An output.log that is not a regular file raises OSError, without blocking."""
    make_hostile(tmp_path / "output.log", kind)

    with pytest.raises(OSError, match=r"symbolic link|regular file|No such device"):
        list(RunFolder(tmp_path).read_output())


def test_link_at_the_temporary_name_is_not_followed(tmp_path: Path) -> None:
    """A link that someone created at the name of the temporary file is replaced, and its target is unchanged."""
    victim = tmp_path / "victim"
    victim.write_text("content")
    (tmp_path / f".result.json.{os.getpid()}").symlink_to(victim)

    RunFolder(tmp_path).write_result(RESULT)

    assert victim.read_text() == "content"
    assert RunFolder(tmp_path).read_result() == RESULT


def test_records_are_written_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record is complete on the disk before it has its name, and its name is on the disk afterwards."""
    synced: list[tuple[bool, bool]] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        synced.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), (tmp_path / "result.json").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    RunFolder(tmp_path).write_result(RESULT)

    assert synced == [(False, False), (True, True)]
