"""Transfers between this machine and volumes of the local backend: links, special files, and what a failure leaves."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from skyrl_modal import Launcher, VolumeSpec
from skyrl_modal.backends import transfer
from skyrl_modal.backends.local.volumes import volume_folder
from skyrl_modal.backends.transfer import STAGING_PREFIX
from skyrl_modal.errors import PathNotFound, SpecError, StorageError

#: Pulls a folder with a file of a given size, and stops itself in the middle of it.
KILLED_TRANSFER = """
import os, signal, sys
from pathlib import Path
from skyrl_modal import Launcher, VolumeSpec
from skyrl_modal.backends import file_tree

copy_file = file_tree.copy_file

def copy_half(source, target):
    if source.name == "last":
        target.write_bytes(b"half")
        print("half", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    copy_file(source, target)

file_tree.copy_file = copy_half
launcher = Launcher(backend="local", mounts=[], volumes=[VolumeSpec(name=sys.argv[1])])
getattr(launcher, sys.argv[2])(*sys.argv[3:])
"""


@pytest.fixture
def root(volume: VolumeSpec) -> Path:
    """Return the folder of a volume with a checkpoint and a link to it, as a run in a container creates it."""
    folder = volume_folder(volume.name)
    (folder / "ck" / "step_10").mkdir(parents=True)
    (folder / "ck" / "step_10" / "weights").write_bytes(b"w" * 1000)
    (folder / "ck" / "latest").symlink_to("/root/data/ck/step_10")
    return folder


@pytest.fixture
def made(launcher: Callable[..., Launcher], root: Path) -> Launcher:
    """Return a launcher with the volume."""
    return launcher()


def names(folder: Path) -> list[str]:
    """Return the paths below a folder, sorted. Links are not followed."""
    return sorted(
        os.path.relpath(os.path.join(parent, name), folder)
        for parent, folders, files in os.walk(folder)
        for name in [*folders, *files]
    )


# -- links on a volume -------------------------------------------------------------------------------------------------


def test_absolute_link_is_listed_and_pulled(made: Launcher, tmp_path: Path) -> None:
    """A link to a path below the mount path leads to that path on the volume, as in the container."""
    assert [entry.type for entry in made.ls("/root/data/ck")] == ["dir", "dir"]
    assert [Path(entry.path).name for entry in made.ls("/root/data/ck/latest")] == ["weights"]

    assert made.pull("/root/data/ck/latest", tmp_path / "copy") == tmp_path / "copy"
    assert made.pull("/root/data/ck/latest/weights", tmp_path / "file").stat().st_size == 1000

    assert names(tmp_path / "copy") == ["weights"]


def test_push_through_a_link_stays_on_the_volume(made: Launcher, root: Path, tmp_path: Path) -> None:
    """A file that is pushed to a path below a link is written to the folder that the link leads to on the volume."""
    (tmp_path / "new").write_text("new")

    made.push(tmp_path / "new", "/root/data/ck/latest/sub/new")
    made.push(tmp_path / "new", "/root/data/ck/latest")

    assert names(root / "ck" / "step_10") == ["new", "sub", "sub/new", "weights"]


@pytest.mark.parametrize(
    ("text", "copied"),
    [
        ("/root/data/ck/step_10", "step_10"),
        ("step_10", "step_10"),
        ("./step_10/../step_10", "./step_10/../step_10"),
        ("/root/data/ck/step_99", "step_99"),
        ("../ck/step_10", "../ck/step_10"),
        ("/etc", None),
        ("../../../../etc", None),
        ("../other", None),
        ("loop", None),
    ],
)
def test_links_in_a_pulled_folder(made: Launcher, root: Path, tmp_path: Path, text: str, copied: str | None) -> None:
    """A link within the folder works in the copy; any other one is not copied, and reported."""
    (root / "other").mkdir()
    link = root / "ck" / ("loop" if text == "loop" else "latest")
    link.unlink(missing_ok=True)
    link.symlink_to(text)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        copy = made.pull("/root/data/ck", tmp_path / "ck") / link.name

    assert (os.readlink(copy) if copy.is_symlink() else None) == copied
    assert [repr(link.name) in str(item.message) for item in caught] == ([] if copied else [True])


def test_link_to_a_file_elsewhere_is_pulled_as_a_file(made: Launcher, root: Path, tmp_path: Path) -> None:
    """A link out of the folder to a file on the volume is replaced by the content, as in caches of Hugging Face."""
    (root / "blob").write_text("content")
    (root / "ck" / "step_10" / "config").symlink_to("../../blob")

    copy = made.pull("/root/data/ck/step_10", tmp_path / "copy")

    assert not (copy / "config").is_symlink()
    assert (copy / "config").read_text() == "content"


@pytest.mark.parametrize(
    "text",
    ["/etc/passwd", "/root/SkyRL/x", "/root/data/../x", "../../../../../../../../etc", "link", "/root/data/link"],
)
def test_path_out_of_the_volume_is_refused(made: Launcher, root: Path, tmp_path: Path, text: str) -> None:
    """A link out of the volume, or to itself, is not followed by ls, pull and push."""
    (root / "link").symlink_to(text)
    (tmp_path / "x").write_text("x")

    for act in (
        lambda: made.ls("/root/data/link"),
        lambda: made.pull("/root/data/link", tmp_path / "copy"),
        lambda: made.push(tmp_path / "x", "/root/data/link"),
        lambda: made.push(tmp_path / "x", "/root/data/link/x"),
    ):
        with pytest.raises(SpecError, match="outside of the volume"):
            act()
    assert sorted(os.listdir(tmp_path)) == ["SkyRL", "x"]
    assert [entry.type for entry in made.ls("/root/data")] == ["dir", "other"]


@pytest.mark.parametrize("path", ["/root/data/../x", "/root/data/\0", "data/x", "", "/root/database"])
def test_path_on_no_volume_is_refused(made: Launcher, tmp_path: Path, path: str) -> None:
    """A path that is not on a volume of the launcher is refused."""
    with pytest.raises(SpecError):
        made.pull(path, tmp_path / "copy")


# -- links and other entries at the target -----------------------------------------------------------------------------


def test_link_at_the_target_is_replaced_by_a_file(made: Launcher, root: Path, tmp_path: Path) -> None:
    """A pulled or pushed file replaces a link, whether or not it leads to a file, and does not write through it."""
    (tmp_path / "victim").write_text("unchanged")
    (root / "victim").write_text("unchanged")
    for name, text in (("link", tmp_path / "victim"), ("dangling", tmp_path / "none")):
        (tmp_path / name).symlink_to(text)
        assert made.pull("/root/data/ck/step_10/weights", tmp_path / name).stat().st_size == 1000
        assert not (tmp_path / name).is_symlink()
    (root / "link").symlink_to("/root/data/victim")

    made.push(tmp_path / "link", "/root/data/link")

    assert not (root / "link").is_symlink()
    assert (tmp_path / "victim").read_text() == (root / "victim").read_text() == "unchanged"
    assert not (tmp_path / "none").exists()


def test_link_to_a_folder_at_the_target_is_refused(made: Launcher, tmp_path: Path) -> None:
    """Nothing is written through a link to a folder: neither the target nor a folder below it."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "copy" / "ck").mkdir(parents=True)
    (tmp_path / "copy" / "ck" / "step_10").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(SpecError, match="symbolic link"):
        made.pull("/root/data/ck", tmp_path / "out")
    with pytest.raises(StorageError, match="symbolic link"):
        made.pull("/root/data/ck", tmp_path / "copy")

    assert names(tmp_path / "elsewhere") == []
    assert names(tmp_path / "copy") == ["ck", "ck/step_10"]


def test_pushed_folder_does_not_follow_links(made: Launcher, root: Path, tmp_path: Path) -> None:
    """A folder on the volume that is a link is not written through when a folder is merged."""
    (root / "other").mkdir()
    (root / "target").mkdir()
    (root / "target" / "sub").symlink_to("../other")
    (tmp_path / "up" / "sub").mkdir(parents=True)
    (tmp_path / "up" / "sub" / "file").write_text("x")

    with pytest.raises(StorageError):
        made.push(tmp_path / "up", "/root/data/target")

    assert names(root / "other") == []
    assert names(root / "target") == ["sub"]


def test_folder_is_merged_into_an_existing_one(made: Launcher, tmp_path: Path) -> None:
    """Files of the copy replace those of the same name. Others are kept."""
    (tmp_path / "ck" / "step_10").mkdir(parents=True)
    (tmp_path / "ck" / "step_10" / "weights").write_text("old")
    (tmp_path / "ck" / "step_10" / "kept").write_text("kept")

    made.pull("/root/data/ck", tmp_path)

    assert names(tmp_path / "ck") == ["latest", "step_10", "step_10/kept", "step_10/weights"]
    assert (tmp_path / "ck" / "latest" / "weights").stat().st_size == 1000


@pytest.mark.parametrize("target", ["file", "folder"])
def test_file_and_folder_do_not_replace_each_other(made: Launcher, tmp_path: Path, target: str) -> None:
    """A conflict of kinds anywhere in the target is refused before any file is moved."""
    (tmp_path / "ck" / "aaa").mkdir(parents=True)
    if target == "file":
        (tmp_path / "ck" / "step_10").write_text("a file")
    else:
        (tmp_path / "ck" / "step_10" / "weights").mkdir(parents=True)
    before = names(tmp_path / "ck")

    with pytest.raises(StorageError):
        made.pull("/root/data/ck", tmp_path)

    assert names(tmp_path / "ck") == before


def test_whole_volume_is_pulled_and_pushed(made: Launcher, root: Path, tmp_path: Path) -> None:
    """The mount path itself can be pulled and pushed to. A file that is pushed to it keeps its name."""
    copy = made.pull("/root/data", tmp_path / "all")
    (copy / "new").write_text("new")

    made.push(copy, "/root/data")
    made.push(copy / "new", "/root/data")

    assert names(root) == ["ck", "ck/latest", "ck/step_10", "ck/step_10/weights", "new"]


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
def test_special_files_are_refused(made: Launcher, root: Path, tmp_path: Path, kind: str, side: str) -> None:
    """A special file is refused; in a folder it is reported, and the rest is copied. Nothing blocks."""
    folder = tmp_path / "folder" if side == "local" else root / "folder"
    folder.mkdir()
    (folder / "file").write_text("content")
    make_special(folder / "special", kind)

    def transfer_path(name: str) -> Path:
        if side == "local":
            made.push(tmp_path / name, f"/root/data/copy-of-{name}")
            return root / f"copy-of-{name}"
        return made.pull(f"/root/data/{name}", tmp_path / name)

    with pytest.warns(UserWarning, match="'special' was not copied"):
        copy = transfer_path("folder")
    assert names(copy) == ["file"]
    with pytest.raises((StorageError, SpecError)):
        transfer_path("folder/special")


@pytest.mark.parametrize("kind", ["pipe", "socket", "/dev/null", "/dev/full"])
def test_special_file_at_the_target_is_kept(made: Launcher, root: Path, tmp_path: Path, kind: str) -> None:
    """A device, a named pipe or a socket is neither replaced nor written to, also in a folder that is merged."""
    (tmp_path / "ck" / "step_10").mkdir(parents=True)
    (root / "target" / "step_10").mkdir(parents=True)
    for place in (tmp_path / "ck" / "step_10" / "weights", root / "target" / "step_10" / "weights"):
        make_special(place, kind)
    before = (tmp_path / "ck" / "step_10" / "weights").lstat()

    for act in (
        lambda: made.pull("/root/data/ck/step_10/weights", tmp_path / "ck" / "step_10" / "weights"),
        lambda: made.pull("/root/data/ck", tmp_path),
        lambda: made.push(root / "ck" / "step_10", "/root/data/target/step_10"),
    ):
        with pytest.raises((StorageError, SpecError)):
            act()

    assert os.path.samestat(before, (tmp_path / "ck" / "step_10" / "weights").lstat())


def test_reports_are_limited(made: Launcher, root: Path, tmp_path: Path) -> None:
    """Of many entries that are not copied, some are named and the rest is counted."""
    for number in range(30):
        os.mkfifo(root / "ck" / f"pipe-{number}")

    with pytest.warns(UserWarning, match="copied") as caught:
        made.pull("/root/data/ck", tmp_path / "copy")

    assert len(caught) == 11
    assert "20 more entries" in str(caught[-1].message)


def test_growing_file_is_copied_once(made: Launcher, root: Path, tmp_path: Path) -> None:
    """A file that is written faster than it is copied is copied up to the size that it had."""
    log = root / "log"
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
        assert made.pull("/root/data/log", tmp_path / "log").stat().st_size < 257 << 20
    finally:
        stop.set()
        writer.join()


def test_permissions_and_times_are_copied(made: Launcher, root: Path, tmp_path: Path) -> None:
    """A copy has the permissions and times of the original, without set-user-id. Its folders are writable."""
    (root / "run.sh").write_text("x")
    (root / "run.sh").chmod(0o4750)
    (root / "ck" / "step_10").chmod(0o500)
    os.utime(root / "run.sh", (1, 1_000_000_000))

    script = made.pull("/root/data/run.sh", tmp_path)
    folder = made.pull("/root/data/ck/step_10", tmp_path)

    assert (script.stat().st_mode & 0o7777, script.stat().st_mtime) == (0o750, 1_000_000_000)
    assert folder.stat().st_mode & 0o777 == 0o700
    (root / "ck" / "step_10").chmod(0o700)


# -- failures ----------------------------------------------------------------------------------------------------------


def test_missing_path_creates_nothing(made: Launcher, tmp_path: Path) -> None:
    """A failed pull leaves no folder for its target. A volume that may not be created is not created."""
    with pytest.raises(PathNotFound):
        made.pull("/root/data/none", tmp_path / "new" / "folder" / "file")
    other = VolumeSpec(name="never-created", create_if_missing=False)
    launcher = Launcher(backend="local", mounts=[], volumes=[other])
    with pytest.raises(PathNotFound):
        launcher.push(__file__, "/root/data/x")

    assert not (tmp_path / "new").exists()
    assert not volume_folder("never-created").exists()


@pytest.mark.parametrize("failing", ["copy_file", "flush_tree", "os.replace"])
def test_failure_leaves_the_target_unchanged(
    made: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """An error while a file is written, flushed or moved removes the incomplete copy. The old file remains."""
    (tmp_path / "file").write_text("old")

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "file"))

    if failing == "os.replace":
        monkeypatch.setattr(transfer.os, "replace", fail)
    else:
        monkeypatch.setattr(
            f"skyrl_modal.backends.{'file_tree' if failing == 'copy_file' else 'transfer'}.{failing}", fail
        )

    with pytest.raises(StorageError, match="No space left"):
        made.pull("/root/data/ck/step_10/weights", tmp_path / "file")

    assert names(tmp_path / "file") == []
    assert (tmp_path / "file").read_text() == "old"
    assert not [name for name in os.listdir(tmp_path) if name.startswith(STAGING_PREFIX)]


def test_file_is_flushed_before_it_is_moved(made: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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

    made.pull("/root/data/ck/step_10/weights", tmp_path / "file")

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
    made: Launcher, root: Path, volume: VolumeSpec, tmp_path: Path, exists: bool
) -> None:
    """After SIGKILL the target is unchanged; the next transfer, to any place, removes the incomplete copy."""
    (root / "ck" / "last").write_text("complete")
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "last").write_text("complete")
    for folder in (tmp_path / "copy", root / "pushed"):
        if exists:
            folder.mkdir()
            (folder / "last").write_text("old")

    kill_transfer(volume, "push", str(tmp_path / "up"), "/root/data/pushed")
    places = [root / "pushed"] if exists else [root]
    assert [len(staging_folders(place)) for place in places] == [1]
    kill_transfer(volume, "pull", "/root/data/ck/last", str(tmp_path / "copy" / "last"))

    for folder in (tmp_path / "copy", root / "pushed"):
        assert (folder / "last").read_text() == "old" if exists else not (folder / "last").exists()
    assert staging_folders(places[0]) == []
    assert len(staging_folders(tmp_path / "copy")) == 1
    made.pull("/root/data/ck/last", tmp_path / "elsewhere")
    assert staging_folders(tmp_path / "copy") == []


def test_leftover_without_a_link_is_removed(made: Launcher, tmp_path: Path) -> None:
    """The next transfer to a folder removes an incomplete copy that the state folder does not list."""
    (tmp_path / f"{STAGING_PREFIX}left").mkdir()

    made.pull("/root/data/ck/step_10/weights", tmp_path / "file")

    assert staging_folders(tmp_path) == []


def test_incomplete_copies_are_not_copied(made: Launcher, root: Path, tmp_path: Path) -> None:
    """What a killed transfer has left in a folder is not part of a copy of the folder."""
    (root / "ck" / f"{STAGING_PREFIX}left").mkdir()

    assert names(made.pull("/root/data/ck", tmp_path / "copy")) == ["latest", "step_10", "step_10/weights"]


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


def test_concurrent_transfers_leave_complete_files(made: Launcher, root: Path, tmp_path: Path) -> None:
    """Threads that pull and push the same folders at the same time leave complete files, and nothing else."""
    for number in range(20):
        (root / "ck" / f"file-{number}").write_text("x" * 1000)
    errors: list[BaseException] = []

    def act(push: bool) -> None:
        try:
            for _ in range(5):
                if push:
                    made.push(root / "ck", "/root/data/pushed")
                else:
                    made.pull("/root/data/ck", tmp_path / "target")
        except BaseException as error:  # reported by the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=act, args=(number % 2 == 0,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    for folder in (
        root / "pushed",
        tmp_path / "target" / "ck" if (tmp_path / "target" / "ck").exists() else tmp_path / "target",
    ):
        assert {(folder / f"file-{number}").stat().st_size for number in range(20)} == {1000}
    assert staging_folders(root) == staging_folders(tmp_path) == []
