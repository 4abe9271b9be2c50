"""Tests of the locks of checkpoint folders on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from skyrl_modal.container.checkpoint_claims import LOCK_SUFFIX, ClaimedByOther, FileClaim

HOLD = """
import sys
from skyrl_modal.container.checkpoint_claims import FileClaim
FileClaim(sys.argv[1], sys.argv[2]).acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_lock_of_a_process_that_is_killed(tmp_path: Path) -> None:
    """Another process holds the lock until it ends, also by SIGKILL. The lock's file names its run."""
    folder = str(tmp_path / "ckpts" / "a")
    argv = [sys.executable, "-c", HOLD, "r1", folder]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"

        with pytest.raises(ClaimedByOther) as caught:
            FileClaim("r2", folder).acquire()
        holder.kill()

    assert (caught.value.run_id, caught.value.folder) == ("r1", folder)
    claim = FileClaim("r2", folder)
    claim.acquire()
    claim.release()
    assert os.listdir(tmp_path / "ckpts") == []


def test_all_paths_of_a_folder_have_one_lock(tmp_path: Path) -> None:
    """A link to the folder, and a path with dots, is the same folder."""
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    claim = FileClaim("r1", str(tmp_path / "a"))
    claim.acquire()

    for path in (tmp_path / "link", tmp_path / "a" / ".." / "a"):
        with pytest.raises(ClaimedByOther):
            FileClaim("r2", str(path)).acquire()
    FileClaim("r3", str(tmp_path / "b")).acquire()
    claim.release()


def test_lock_of_a_mount_path_is_inside(tmp_path: Path) -> None:
    """The folder above a volume is not shared between runs, so that the lock has to be on the volume."""
    claim = FileClaim("r1", str(tmp_path), (str(tmp_path),))

    claim.acquire()

    assert os.listdir(tmp_path) == [f".checkpoints{LOCK_SUFFIX}"]
    claim.release()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_lock_file_of_another_kind_is_refused(kind: str, tmp_path: Path) -> None:
    """A link is not followed, a named pipe does not block, and neither is changed."""
    path = tmp_path / f".a{LOCK_SUFFIX}"
    if kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()

    with pytest.raises(OSError, match=r".+"):
        FileClaim("r1", str(tmp_path / "a")).acquire()

    assert not (tmp_path / "elsewhere").exists()
    assert os.path.lexists(path)


def test_content_of_a_lock_file_is_not_trusted(tmp_path: Path) -> None:
    """A name in the file with control characters is shown as text."""
    claim = FileClaim("\x1b[2J\nrun", str(tmp_path / "a"))
    claim.acquire()

    with pytest.raises(ClaimedByOther) as caught:
        FileClaim("r2", str(tmp_path / "a")).acquire()

    assert caught.value.run_id == "\\x1b[2J\\nrun"
    claim.release()
