"""Logs that are kept contain no value of a secret, and only their user can read them."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from skyrl_modal.container.masked_logs import MaskedLog, copy_masked_tree, make_private_folder, read_masked_end
from skyrl_modal.container.masking import SecretMask

SECRETS = SecretMask(["s3cret-value"])
UMASKS = [0o000, 0o022, 0o077]


@pytest.fixture(params=UMASKS, ids=oct, autouse=True)
def umask(request: pytest.FixtureRequest) -> object:
    """The umask of the test."""
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    """Return the permissions of a file or folder."""
    return stat.S_IMODE(path.stat().st_mode)


def test_processes_write_masked_lines(tmp_path: Path) -> None:
    """What two processes write is in the file, masked, although a write divides a value."""
    log = MaskedLog(tmp_path / "start.log", SECRETS)
    first = subprocess.Popen(["sh", "-c", "printf 's3cret-'; sleep 0.1; printf 'value end'"], stdout=log.writer)
    assert first.wait() == 0
    log.write_available()
    assert (tmp_path / "start.log").read_bytes() == b"******** end"

    second = subprocess.Popen(["sh", "-c", "echo more; printf s3cret"], stderr=log.writer, stdout=log.writer)
    assert second.wait() == 0
    log.join()

    assert (tmp_path / "start.log").read_bytes() == b"******** endmore\ns3cret"
    assert mode(tmp_path / "start.log") == 0o600


def test_a_full_disk_does_not_stop_processes() -> None:
    """A log that cannot be written is dropped, and the process continues."""
    log = MaskedLog(Path("/dev/full"), SECRETS)
    child = subprocess.Popen(["sh", "-c", "head -c 1000000 /dev/zero; exit 3"], stdout=log.writer)
    assert child.wait() == 3
    log.join()


def test_a_log_does_not_follow_a_link(tmp_path: Path) -> None:
    """A link at the log's path is refused, since it may lead to any file of this user."""
    (tmp_path / "start.log").symlink_to(tmp_path / "other")

    with pytest.raises(OSError, match="symbolic link"):
        MaskedLog(tmp_path / "start.log", SECRETS)
    assert not (tmp_path / "other").exists()


def test_trees_are_copied_masked(tmp_path: Path) -> None:
    """Regular files are copied and masked; links, pipes and sockets are not, and modes are those of private files."""
    source, target = tmp_path / "logs", tmp_path / "kept"
    (source / "old").mkdir(parents=True)
    (source / "worker-1.out").write_bytes(b"s3cret-value " * 200_000)
    (source / "worker-1.err").write_text("s3cret-")
    (source / "worker-2.err").write_text("value")
    (source / "old" / "x").write_text("a\ns3cret-value")
    (source / "link").symlink_to("/etc/passwd")
    (source / "folder").symlink_to(source / "old")
    os.mkfifo(source / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(source / "socket"))
    target.mkdir(mode=0o755)
    (target / "worker-2.err").write_text("from the first attempt")

    assert copy_masked_tree(source, target, SECRETS) == []

    kept = {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert kept == {
        "worker-1.out": b"******** " * 200_000,
        "worker-1.err": b"s3cret-",
        "worker-2.err": b"value",
        "old/x": b"a\n********",
    }
    assert {mode(path) for path in target.rglob("*") if path.is_file()} == {0o600}
    assert mode(target) == mode(target / "old") == 0o700


def test_problems_of_a_copy_are_returned(tmp_path: Path) -> None:
    """A file that cannot be copied is reported, and the others are copied."""
    source, target = tmp_path / "logs", tmp_path / "kept"
    source.mkdir()
    (source / "a").write_text("a")
    (source / "b").write_text("b")
    (target / "a").mkdir(parents=True)

    problems = copy_masked_tree(source, target, SECRETS)

    assert len(problems) == 1
    assert str(target / "a") in problems[0]
    assert (target / "b").read_text() == "b"


def test_the_end_of_a_log_has_no_part_of_a_value(tmp_path: Path) -> None:
    """A line that the limit divides is left out, as it may begin with a part of a value. Other files are empty."""
    (tmp_path / "log").write_text("key=s3cret-value\nlast line with s3cret-value\n")
    os.mkfifo(tmp_path / "pipe")

    assert read_masked_end(tmp_path / "log", 1000, SECRETS) == "key=********\nlast line with ********\n"
    assert read_masked_end(tmp_path / "log", 35, SECRETS) == "last line with ********\n"
    assert read_masked_end(tmp_path / "log", 8, SECRETS) == ""
    assert read_masked_end(tmp_path / "pipe", 8, SECRETS) == ""


def test_folders_are_private(tmp_path: Path) -> None:
    """A new folder is private whatever the umask, and so is an existing one afterwards."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for name in ("new", "open"):
        make_private_folder(tmp_path / name)

    assert mode(tmp_path / "new") == mode(tmp_path / "open") == 0o700
