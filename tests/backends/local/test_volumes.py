"""Transfers between this machine and volumes of the local backend: special files, and what a failure leaves."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from skyrl_modal import Launcher, VolumeSpec
from skyrl_modal.backends.local.volume_folder import volume_folder
from skyrl_modal.backends.staging import STAGING_PREFIX
from skyrl_modal.errors import PathNotFound, SpecError, StorageError
from skyrl_modal.run.cleanup import clean_up
from tests.backends.local.conftest import paths_below

#: Pulls a folder with a file of a given size, and stops itself in the middle of it.
KILLED_TRANSFER = """
import os, signal, sys
from pathlib import Path
from skyrl_modal import Launcher, VolumeSpec
from skyrl_modal.backends.local import tree_copy

copy_file = tree_copy.copy_file

def copy_half(entry, staged, *others):
    if entry.source.name == "last":
        with staged.writing(entry, 1) as (file, offset):
            file.write(b"half")
            print("half", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    copy_file(entry, staged, *others)

tree_copy.copy_file = copy_half
launcher = Launcher(backend="local", mounts=[], volumes=[VolumeSpec(name=sys.argv[1])])
getattr(launcher, sys.argv[2])(*sys.argv[3:])
"""


# -- special files -----------------------------------------------------------------------------------------------------


def make_special(path: Path, kind: str) -> None:
    """Create a special file, or a link to one."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            folder = os.open(path.parent, os.O_RDONLY)
            try:  # a short path: that of a socket has at most 107 characters
                listener.bind(f"/proc/self/fd/{folder}/{path.name}")
            finally:
                os.close(folder)
    else:
        path.symlink_to(kind)


@pytest.mark.parametrize("kind", ["pipe", "socket", "/dev/zero", "/dev/tty", "/proc/self/fd/0"])
@pytest.mark.parametrize("side", ["volume", "local"])
def test_special_files_are_refused(
    volume_launcher: Launcher, volume_root: Path, tmp_path: Path, kind: str, side: str
) -> None:
    """A special file is refused; in a folder it is reported, and the rest is copied. Nothing blocks."""
    folder = tmp_path / "folder" if side == "local" else volume_root / "folder"
    folder.mkdir()
    (folder / "file").write_text("content")
    make_special(folder / "special", kind)

    def transfer_path(name: str) -> Path:
        if side == "local":
            volume_launcher.push(tmp_path / name, f"/root/data/copy-of-{name}")
            return volume_root / f"copy-of-{name}"
        return volume_launcher.pull(f"/root/data/{name}", tmp_path / name)

    with pytest.warns(UserWarning, match="'special' was not copied"):
        copy = transfer_path("folder")
    assert paths_below(copy) == ["file"]
    with pytest.raises((StorageError, SpecError)):
        transfer_path("folder/special")


@pytest.mark.parametrize("kind", ["pipe", "socket", "/dev/null", "/dev/full"])
def test_special_file_at_the_target_is_kept(
    volume_launcher: Launcher, volume_root: Path, tmp_path: Path, kind: str
) -> None:
    """A device, a named pipe or a socket is neither replaced nor written to, also in a folder that is merged."""
    (tmp_path / "ck" / "step_10").mkdir(parents=True)
    (volume_root / "target" / "step_10").mkdir(parents=True)
    for place in (tmp_path / "ck" / "step_10" / "weights", volume_root / "target" / "step_10" / "weights"):
        make_special(place, kind)
    before = (tmp_path / "ck" / "step_10" / "weights").lstat()

    for act in (
        lambda: volume_launcher.pull("/root/data/ck/step_10/weights", tmp_path / "ck" / "step_10" / "weights"),
        lambda: volume_launcher.pull("/root/data/ck", tmp_path),
        lambda: volume_launcher.push(volume_root / "ck" / "step_10", "/root/data/target/step_10"),
    ):
        with pytest.raises((StorageError, SpecError)):
            act()

    assert os.path.samestat(before, (tmp_path / "ck" / "step_10" / "weights").lstat())


def test_reports_are_limited(volume_launcher: Launcher, volume_root: Path, tmp_path: Path) -> None:
    """Of many entries that are not copied, some are named and the rest is counted."""
    for number in range(30):
        os.mkfifo(volume_root / "ck" / f"pipe-{number}")

    with pytest.warns(UserWarning, match="copied") as caught:
        volume_launcher.pull("/root/data/ck", tmp_path / "copy")

    assert len(caught) == 11
    assert "20 more entries" in str(caught[-1].message)


def test_growing_file_is_copied_once(volume_launcher: Launcher, volume_root: Path, tmp_path: Path) -> None:
    """A file that is written faster than it is copied is copied up to the size that it had."""
    log = volume_root / "log"
    log.write_bytes(bytes(1 << 20))
    stop = threading.Event()

    def write() -> None:
        with log.open("ab", buffering=0) as file:
            for _ in range(256):
                if stop.is_set():
                    break
                file.write(bytes(1 << 20))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert volume_launcher.pull("/root/data/log", tmp_path / "log").stat().st_size < 257 << 20
    finally:
        stop.set()
        writer.join()


def test_permissions_and_times_are_copied(volume_launcher: Launcher, volume_root: Path, tmp_path: Path) -> None:
    """A copy has the permissions and times of the original, without set-user-id. Its folders are writable."""
    (volume_root / "run.sh").write_text("x")
    (volume_root / "run.sh").chmod(0o4750)
    (volume_root / "ck" / "step_10").chmod(0o500)
    os.utime(volume_root / "run.sh", (1, 1_000_000_000))

    script = volume_launcher.pull("/root/data/run.sh", tmp_path)
    folder = volume_launcher.pull("/root/data/ck/step_10", tmp_path)

    assert (script.stat().st_mode & 0o7777, script.stat().st_mtime) == (0o750, 1_000_000_000)
    assert folder.stat().st_mode & 0o777 == 0o700
    (volume_root / "ck" / "step_10").chmod(0o700)


# -- failures ----------------------------------------------------------------------------------------------------------


def test_missing_path_creates_nothing(volume_launcher: Launcher, tmp_path: Path) -> None:
    """A failed pull leaves no folder for its target. A volume that may not be created is not created."""
    with pytest.raises(PathNotFound):
        volume_launcher.pull("/root/data/none", tmp_path / "new" / "folder" / "file")
    other = VolumeSpec(name="never-created", create_if_missing=False)
    launcher = Launcher(backend="local", mounts=[], volumes=[other])
    with pytest.raises(PathNotFound):
        launcher.push(__file__, "/root/data/x")

    assert not (tmp_path / "new").exists()
    assert not volume_folder("never-created").exists()


@pytest.mark.parametrize("failing", ["copy_file", "flush_tree", "os.replace"])
def test_failure_leaves_the_target_unchanged(
    volume_launcher: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """An error while a file is written, flushed or moved removes the incomplete copy. The old file remains."""
    (tmp_path / "file").write_text("old")

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "file"))

    if failing == "os.replace":
        monkeypatch.setattr(os, "replace", fail)
    else:
        monkeypatch.setattr(
            f"skyrl_modal.backends.{'local.tree_copy' if failing == 'copy_file' else 'transfer'}.{failing}", fail
        )

    with pytest.raises(StorageError, match="No space left"):
        volume_launcher.pull("/root/data/ck/step_10/weights", tmp_path / "file")

    assert paths_below(tmp_path / "file") == []
    assert (tmp_path / "file").read_text() == "old"
    assert not [name for name in os.listdir(tmp_path) if name.startswith(STAGING_PREFIX)]


def test_file_is_flushed_before_it_is_moved(
    volume_launcher: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The content is on the disk before it has its final name, so that a power failure leaves no empty file."""
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        events.append("fsync")
        fsync(descriptor)

    def record_replace(source: Path, target: Path) -> None:
        events.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)

    volume_launcher.pull("/root/data/ck/step_10/weights", tmp_path / "file")

    assert events == ["fsync", "replace", "fsync"]


def kill_transfer(volume: VolumeSpec, verb: str, *arguments: str) -> None:
    """Start a transfer in another process, which is killed while it copies the file ``last``."""
    command = [sys.executable, "-c", KILLED_TRANSFER, volume.name, verb, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "half\n"), done.stderr


def staging_folders(folder: Path) -> list[str]:
    """Return the names of staging folders in a folder."""
    return [name for name in os.listdir(folder) if name.startswith(STAGING_PREFIX)]


@pytest.mark.parametrize("exists", [False, True])
def test_killed_transfer_leaves_nothing_incomplete(
    volume_launcher: Launcher, volume_root: Path, volume: VolumeSpec, tmp_path: Path, exists: bool
) -> None:
    """After SIGKILL the target is unchanged. Other transfers leave the incomplete copy; `clean` removes it."""
    (volume_root / "ck" / "last").write_text("complete")
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "last").write_text("complete")
    for folder in (tmp_path / "copy", volume_root / "pushed"):
        if exists:
            folder.mkdir()
            (folder / "last").write_text("old")

    kill_transfer(volume, "push", f"{tmp_path / 'up'}/", "/root/data/pushed")
    places = [volume_root / "pushed"] if exists else [volume_root]
    assert [len(staging_folders(place)) for place in places] == [1]
    kill_transfer(volume, "pull", "/root/data/ck/last", str(tmp_path / "copy" / "last"))

    for folder in (tmp_path / "copy", volume_root / "pushed"):
        assert (folder / "last").read_text() == "old" if exists else not (folder / "last").exists()
    volume_launcher.pull("/root/data/ck/last", tmp_path / "elsewhere")
    assert [len(staging_folders(place)) for place in (places[0], tmp_path / "copy")] == [1, 1]
    clean_up()
    assert staging_folders(places[0]) == staging_folders(tmp_path / "copy") == []


def test_leftover_without_a_link_is_removed(volume_launcher: Launcher, tmp_path: Path) -> None:
    """The next transfer to a folder removes an incomplete copy that the state folder does not list."""
    (tmp_path / f"{STAGING_PREFIX}left").mkdir()

    volume_launcher.pull("/root/data/ck/step_10/weights", tmp_path / "file")

    assert staging_folders(tmp_path) == []


def test_incomplete_copies_are_not_copied(volume_launcher: Launcher, volume_root: Path, tmp_path: Path) -> None:
    """What a killed transfer has left in a folder is not part of a copy of the folder."""
    (volume_root / "ck" / f"{STAGING_PREFIX}left").mkdir()

    assert paths_below(volume_launcher.pull("/root/data/ck", tmp_path / "copy")) == [
        "latest",
        "step_10",
        "step_10/weights",
    ]


def test_folder_that_contains_the_volume_is_pushed(
    launcher: Callable[..., Launcher], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A push of a folder that contains the volume itself ends: the new copy is not part of what is copied."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home" / "data"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "file").write_text("x")

    launcher().push(tmp_path / "home", "/root/data/home")

    [volume] = (tmp_path / "home" / "data" / "skyrl_modal" / "volumes").iterdir()
    assert (volume / "home" / "file").read_text() == "x"


def test_concurrent_transfers_leave_complete_files(
    volume_launcher: Launcher, volume_root: Path, tmp_path: Path
) -> None:
    """Threads that pull and push the same folders at the same time leave complete files, and nothing else."""
    for number in range(20):
        (volume_root / "ck" / f"file-{number}").write_text("x" * 1000)
    errors: list[BaseException] = []

    def act(push: bool) -> None:
        try:
            for _ in range(5):
                if push:
                    volume_launcher.push(volume_root / "ck", "/root/data/pushed")
                else:
                    volume_launcher.pull("/root/data/ck", tmp_path / "target")
        except BaseException as error:  # reported by the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=act, args=(number % 2 == 0,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    for folder in (
        volume_root / "pushed",
        tmp_path / "target" / "ck" if (tmp_path / "target" / "ck").exists() else tmp_path / "target",
    ):
        assert {(folder / f"file-{number}").stat().st_size for number in range(20)} == {1000}
    assert staging_folders(volume_root) == staging_folders(tmp_path) == []
