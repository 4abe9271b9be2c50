"""Logs that are kept contain no value of a secret, and only their user can read them."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from skyrl_modal.container.masked_logs import MaskedLog, make_private_folder, read_masked_end
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
