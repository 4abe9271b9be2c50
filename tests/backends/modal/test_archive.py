"""Tests of the archives in which files are sent to Modal: building, caching, and unpacking in the container."""

from __future__ import annotations

import hashlib
import io
import os
import random
import stat
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE

import pytest

from skyrl_modal.backends.modal.archive import MAX_DIFFERENCES, files_to_send
from skyrl_modal.container import unpack
from skyrl_modal.container.failures import StartError
from skyrl_modal.container.unpack import unpack_mounts
from skyrl_modal.mount import Snapshot, SnapshotStore, select
from skyrl_modal.protocol.codec import ProtocolError
from skyrl_modal.protocol.file_archive import (
    IN_FILE_OF_ITS_OWN,
    LARGE_CONTENT,
    WITHOUT_CONTENT,
    Entry,
    Frame,
    Manifest,
    read_manifest,
    write_manifest,
)
from skyrl_modal.protocol.state import FailureCause
from skyrl_modal.snapshots import archive_cache
from skyrl_modal.snapshots.archive_cache import ArchiveCache, Sending
from tests.support.small_mounts import run_with_mount

Tree = dict[bytes, tuple[int, bytes]]


def read_tree(root: Path) -> Tree:
    """Return kind, permissions and content of each file, link and empty folder."""
    found: Tree = {}
    top = os.fsencode(root)
    for folder, subfolders, names in os.walk(top):
        for name in [*names, *subfolders]:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                found[os.path.relpath(path, top)] = (stat.S_IFLNK, os.readlink(path))
            elif stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    found[os.path.relpath(path, top)] = (status.st_mode, file.read())
            elif not os.listdir(path):
                found[os.path.relpath(path, top)] = (stat.S_IFDIR, b"")
    return found


def write_tree(root: Path, files: int = 40, size: int = 20_000) -> None:
    """Create a folder with files that cannot be compressed."""
    draw = random.Random(7)
    for number in range(files):
        path = root / f"folder{number % 5}" / f"file{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(draw.randbytes(size))


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """Return a folder with files, 800 kB in total."""
    write_tree(tmp_path / "code")
    return tmp_path / "code"


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    """Return an empty store of snapshots."""
    return SnapshotStore(tmp_path / "store")


@pytest.fixture(autouse=True)
def new_container(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test begin as a new container does: its process has created no folders."""
    monkeypatch.setattr(unpack, "_created", set())


def send(store: SnapshotStore, *folders: Path) -> tuple[Sending, dict[str, str]]:
    """Take snapshots of folders, and return what is sent. The mounts are below /root."""
    with_names: list[tuple[str, Snapshot]] = [(f"/root/{path.name}", store.take(select(path))) for path in folders]
    sending, archives = files_to_send(with_names)
    assert sending is not None
    return sending, archives


def sizes(sending: Sending) -> dict[str, int]:
    """Return the sizes of the files that are sent."""
    return {path.name: path.stat().st_size for path in sending.path.iterdir()}


def unpack_to(target: Path, sending: Sending, archives: dict[str, str], volumes: tuple[str, ...] = ()) -> None:
    """Unpack the archive of the only mount into a folder."""
    (name,) = archives.values()
    assert unpack_mounts({str(target): name}, volumes, str(sending.path)) is not None


def test_everything_of_a_tree_is_kept(code: Path, store: SnapshotStore, tmp_path: Path) -> None:
    """Contents, permissions, links and unusual names are the same in the container."""
    odd_names = ["with space", "new\nline", "-rf", "caf\udce9", "ünï", "a" * 255, "#x", "~", "*", "'\"", "\r", "\x01"]
    for number, name in enumerate(odd_names):
        (code / name).write_text(str(number))
        (code / "deep" / name).mkdir(parents=True)
        (code / "deep" / name / "file").symlink_to(name)
    (code / "empty").write_bytes(b"")
    (code / "run.sh").write_text("#!/bin/sh")
    for mode in (0o755, 0o700, 0o600, 0o444, 0o666, 0o777, 0o640):
        (code / f"mode{mode:o}").write_text("x")
        (code / f"mode{mode:o}").chmod(mode)
    for name, target in {"to-folder": "folder1", "broken": "missing", "up": "../..", "root": "/etc/passwd"}.items():
        (code / name).symlink_to(target)
    (code / "odd-target").symlink_to("caf\udce9\n")
    (code / "large").write_bytes(random.Random(1).randbytes(LARGE_CONTENT + 1))
    (code / "not-large").write_bytes(bytes(LARGE_CONTENT))

    unpack_to(tmp_path / "SkyRL", *send(store, code))

    assert read_tree(tmp_path / "SkyRL") == read_tree(code)


def test_empty_mount_is_an_empty_folder(store: SnapshotStore, tmp_path: Path) -> None:
    """A mount without files exists in the container."""
    (tmp_path / "none").mkdir()

    unpack_to(tmp_path / "SkyRL", *send(store, tmp_path / "none"))

    assert read_tree(tmp_path).get(b"SkyRL") == (stat.S_IFDIR, b"")


@pytest.mark.parametrize(
    "change",
    [
        lambda code: (code / "folder1" / "file1.py").write_text("changed"),
        lambda code: (code / "new").write_text("new"),
        lambda code: (code / "folder1" / "file1.py").unlink(),
        lambda code: (code / "folder1").rename(code / "renamed"),
        lambda code: (code / "folder1" / "file1.py").chmod(0o755),
        lambda code: (code / "link").symlink_to("folder1"),
    ],
)
def test_differences_are_sent(
    code: Path, store: SnapshotStore, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    """After a small change, the pack is the same, and the archive has only the changed contents."""
    first, _ = send(store, code)
    (pack,) = [name for name, size in sizes(first).items() if size > 100_000]

    change(code)
    second, archives = send(store, code)

    assert set(sizes(first)) & set(sizes(second)) == {pack}
    (name,) = archives.values()
    assert sizes(second)[name] < 5_000
    unpack_to(tmp_path / "SkyRL", second, archives)
    assert read_tree(tmp_path / "SkyRL") == read_tree(code)


def test_new_pack_after_many_changes(code: Path, store: SnapshotStore, tmp_path: Path) -> None:
    """If more than a quarter of the contents has changed, a new pack is made."""
    write_tree(code, files=100)
    first, _ = send(store, code)
    for number in range(int(100 * MAX_DIFFERENCES) + 1):
        (code / f"folder{number % 5}" / f"file{number}.py").write_bytes(
            random.Random(f"changed {number}").randbytes(20_000)
        )

    second, archives = send(store, code)

    assert not set(sizes(first)) & set(sizes(second))
    unpack_to(tmp_path / "SkyRL", second, archives)
    assert read_tree(tmp_path / "SkyRL") == read_tree(code)


def test_pack_of_other_files_is_not_used(code: Path, store: SnapshotStore) -> None:
    """A small folder is not sent with the large pack of another one that contains its files."""
    send(store, code)
    small = code.parent / "small"
    small.mkdir()
    (small / "copy.py").write_bytes((code / "folder0" / "file0.py").read_bytes())

    sending, _ = send(store, small)

    assert sum(sizes(sending).values()) < 30_000


def test_pack_is_shared_by_copies_of_a_folder(code: Path, store: SnapshotStore) -> None:
    """Two checkouts with almost the same files use one pack."""
    first, _ = send(store, code)
    copy = code.parent / "copy"
    write_tree(copy)
    (copy / "folder0" / "file0.py").write_text("changed")

    second, _ = send(store, copy)

    assert len(set(sizes(first)) & set(sizes(second))) == 1


def test_large_files_are_files_of_their_own(code: Path, store: SnapshotStore) -> None:
    """A change of a large file repeats nothing else, and other changes do not repeat the large file."""
    large = code / "model.bin"
    large.write_bytes(random.Random(1).randbytes(LARGE_CONTENT + 1))
    first, _ = send(store, code)
    (code / "folder0" / "file0.py").write_text("changed")
    second, _ = send(store, code)
    large.write_bytes(random.Random(2).randbytes(LARGE_CONTENT + 1))
    third, _ = send(store, code)

    def new(before: Sending, after: Sending) -> list[int]:
        return sorted(sizes(after)[name] for name in set(sizes(after)) - set(sizes(before)))

    assert [size > LARGE_CONTENT for size in new(first, second)] == [False]
    small, new_large = new(second, third)
    assert (small < 30_000, new_large) == (True, LARGE_CONTENT + 1)


def test_unchanged_snapshot_is_not_archived_again(code: Path, store: SnapshotStore) -> None:
    """A second run sends the same files, without writing them again."""
    first, archives = send(store, code)
    inodes = {path.name: path.stat().st_ino for path in first.path.iterdir()}

    second, again = send(store, code)

    assert again == archives
    assert {path.name: path.stat().st_ino for path in second.path.iterdir()} == inodes


def test_files_of_the_image_are_kept(code: Path, store: SnapshotStore, tmp_path: Path) -> None:
    """An environment of the image in the folder remains. What has the name of a mounted file is replaced."""
    target = tmp_path / "SkyRL"
    (target / ".venv").mkdir(parents=True)
    (target / ".venv" / "python").write_text("python")
    (target / "folder0" / "file0.py").mkdir(parents=True)
    (target / "folder0" / "file0.py" / "x").write_text("")
    (target / "folder1").symlink_to(tmp_path)
    (target / "folder2").write_text("a file")
    (target / "link").write_text("a file")
    (code / "link").symlink_to("folder0")

    unpack_to(target, *send(store, code))

    assert read_tree(target) == {**read_tree(code), b".venv/python": (stat.S_IFREG | 0o644, b"python")}
    assert not (tmp_path / "file1.py").exists()


def test_second_unpack_does_not_trust_the_first(code: Path, store: SnapshotStore, tmp_path: Path) -> None:
    """What a command has changed is restored if the container is used again. Volumes are not changed."""
    target, volume = tmp_path / "SkyRL", tmp_path / "volume"
    volume.mkdir()
    (volume / "checkpoint").write_text("kept")
    sent = send(store, code)
    unpack_to(target, *sent)
    (target / "folder0" / "file0.py").write_text("changed by the command")
    (target / "folder1" / "file1.py").unlink()
    (target / "created").write_text("by the command")
    (target / "folder2" / "sub").mkdir()
    (target / "folder2" / "sub" / "data").symlink_to(volume)

    unpack_to(target, *sent, volumes=(str(target / "folder2" / "sub" / "data"),))

    assert read_tree(target) == {**read_tree(code), b"folder2/sub/data": (stat.S_IFLNK, os.fsencode(volume))}
    assert (volume / "checkpoint").read_text() == "kept"


def damage(path: Path) -> None:
    """Change one byte in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # it is linked with the file in the cache
    path.write_bytes(content)


def shorten(path: Path) -> None:
    """Remove the last byte of a file."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1])


@pytest.mark.parametrize("spoil", [damage, shorten, Path.unlink])
@pytest.mark.parametrize("kind", ["archive", "pack", "large"])
def test_damage_is_a_failure_with_a_cause(
    code: Path, store: SnapshotStore, tmp_path: Path, spoil: Callable[[Path], None], kind: str
) -> None:
    """A damaged or absent file in the container ends the run with a cause and the name of the mount."""
    (code / "large").write_bytes(random.Random(1).randbytes(LARGE_CONTENT + 1))
    sending, archives = send(store, code)
    (archive,) = archives.values()
    pack, large = sorted(set(sizes(sending)) - {archive}, key=sizes(sending).__getitem__)
    spoil(sending.path / {"archive": archive, "pack": pack, "large": large}[kind])

    with pytest.raises(StartError) as caught:
        unpack_to(tmp_path / "SkyRL", sending, archives)

    assert caught.value.failure.cause is FailureCause.FILES_NOT_UNPACKED
    assert str(tmp_path / "SkyRL") in caught.value.failure.text


def test_another_archive_is_refused(code: Path, store: SnapshotStore, tmp_path: Path) -> None:
    """An archive with the right name and other files is a failure."""
    sending, archives = send(store, code)
    (name,) = archives.values()
    (code / "folder0" / "file0.py").write_text("changed")
    other, others = send(store, code)
    (sending.path / name).unlink()
    (sending.path / name).write_bytes((other.path / others[f"/root/{code.name}"]).read_bytes())

    with pytest.raises(StartError, match="damaged"):
        unpack_to(tmp_path / "SkyRL", sending, archives)

    assert not (tmp_path / "SkyRL").exists()


#: Unpacks an archive, and prints the cause and the message of a failure.
UNPACK = """
import sys
from skyrl_modal.container.failures import StartError
from skyrl_modal.container.unpack import unpack_mounts
try:
    unpack_mounts({sys.argv[1]: sys.argv[2]}, (), sys.argv[3])
except StartError as error:
    print(error.failure.cause, error.failure.text)
"""


@pytest.mark.parametrize("options", ["size=300k", "nr_inodes=20", "ro"])
def test_unusable_disk_is_a_failure_with_a_cause(
    code: Path, store: SnapshotStore, tmp_path: Path, options: str
) -> None:
    """A disk that is full, has no inodes or is read-only ends the run with a cause."""
    sending, archives = send(store, code)
    (name,) = archives.values()
    (tmp_path / "disk").mkdir()
    argv = [sys.executable, "-c", UNPACK, str(tmp_path / "disk" / "SkyRL"), name, str(sending.path)]

    done = run_with_mount(tmp_path / "disk", options, argv)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("files_not_unpacked ")
    assert "No space left on device" in done.stdout or "Read-only file system" in done.stdout


#: Sends a folder twice, from a disk without and with space for the archive.
ARCHIVE = """
import subprocess, sys
from pathlib import Path
from skyrl_modal.backends.modal.archive import files_to_send
from skyrl_modal.errors import SnapshotError
from skyrl_modal.mount import SnapshotStore, select
code, disk = Path(sys.argv[1]), Path(sys.argv[2])
with SnapshotStore(disk / "store").take(select(code)) as snapshot:
    try:
        files_to_send([("/root/SkyRL", snapshot)])
    except SnapshotError as error:
        print(error)
    assert not list((disk / "store" / "archives").rglob(".new-*"))
    subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
    sending, archives = files_to_send([("/root/SkyRL", snapshot)])
    print(len(list(sending.path.iterdir())), "files")
"""


def test_full_disk_of_the_caller(code: Path, tmp_path: Path) -> None:
    """If there is no space for the archive, the error has a remedy, and nothing unfinished is left."""
    (tmp_path / "disk").mkdir()

    done = run_with_mount(
        tmp_path / "disk", "size=1300k", [sys.executable, "-c", ARCHIVE, str(code), str(tmp_path / "disk")]
    )

    assert done.returncode == 0, done.stderr
    assert "XDG_CACHE_HOME" in done.stdout
    assert done.stdout.endswith("2 files\n")


FILE, LINK, FOLDER = stat.S_IFREG | 0o644, stat.S_IFLNK, stat.S_IFDIR


@pytest.mark.parametrize(
    "entries",
    [
        [(b"../out", FILE, 0, 0, 1)],
        [(b"/out", FILE, 0, 0, 1)],
        [(b"a/../../out", FILE, 0, 0, 1)],
        [(b"a//b", FILE, 0, 0, 1)],
        [(b".", FOLDER, WITHOUT_CONTENT, 0, 0)],
        [(b"", FILE, 0, 0, 1)],
        [(b"a", LINK, 0, 0, 4), (b"a/out", FILE, 0, 0, 1)],
        [(b"a", FILE, 0, 0, 4), (b"a/b/c", FILE, 0, 0, 1)],
        [(b"a", FILE, 0, 0, 1), (b"a", LINK, 0, 0, 4)],
        [(b"a", stat.S_IFIFO, 0, 0, 1)],
        [(b"a", stat.S_IFCHR, 0, 0, 1)],
        [(b"a", FILE, 1, 0, 1)],
        [(b"a", FILE, -3, 0, 1)],
        [(b"a", FILE, 0, 2, 3)],
        [(b"a", FILE, IN_FILE_OF_ITS_OWN, 0, 1)],
        [(b"a", FILE, WITHOUT_CONTENT, 0, 0)],
        [(b"a", FOLDER, 0, 0, 1)],
        [(b"a", LINK, IN_FILE_OF_ITS_OWN, 0, 1)],
    ],
)
def test_hostile_entries_are_refused(tmp_path: Path, entries: list[tuple[bytes, int, int, int, int]]) -> None:
    """An archive whose entries would be created outside of the folder, or have no content, creates nothing."""
    content = os.fsencode(tmp_path)[:4]
    file = io.BytesIO()
    file.write(content)
    frame = Frame(False, 0, 4, 4, hashlib.sha256(content).hexdigest())
    name = write_manifest(Manifest(None, [frame], [], [Entry(*entry) for entry in entries]), file)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / name).write_bytes(file.getvalue())

    with pytest.raises(ProtocolError):
        read_manifest(file, name)
    with pytest.raises(StartError):
        unpack_mounts({str(tmp_path / "SkyRL"): name}, (), str(tmp_path / "files"))

    assert sorted(path.name for path in tmp_path.iterdir()) == ["files"]


def test_frame_that_expands_is_refused(tmp_path: Path) -> None:
    """A frame that decompresses to more than its declared size is a failure."""
    data = zlib.compress(bytes(10 << 20))
    file = io.BytesIO(data)
    file.seek(0, 2)
    frame = Frame(False, 0, len(data), 1 << 20, hashlib.sha256(data).hexdigest())
    name = write_manifest(Manifest(None, [frame], [], [Entry(b"a", FILE, 0, 0, 1)]), file)
    (tmp_path / name).write_bytes(file.getvalue())

    with pytest.raises(StartError, match="damaged"):
        unpack_mounts({str(tmp_path / "SkyRL"): name}, (), str(tmp_path))


# -- the cache of archives -----------------------------------------------------------------------------------------


def cached(store: SnapshotStore) -> list[str]:
    """Return the kinds of the files in the cache."""
    folder = ArchiveCache(store.folder).folder
    return sorted(path.parent.name for path in folder.rglob("*") if path.is_file() and path.name != "lock")


def test_cache_is_bounded(code: Path, store: SnapshotStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least recently used archives and packs are removed; the latest can be sent."""
    monkeypatch.setattr(archive_cache, "MAX_ARCHIVES", 3)
    monkeypatch.setattr(archive_cache, "MAX_PACKS", 2)
    for number in range(5):
        for path in code.rglob("*.py"):
            path.write_bytes(random.Random(f"{number}{path}").randbytes(20_000))
        send(store, code)[0].release()

    assert cached(store) == ["indexes"] * 2 + ["packs"] * 2 + ["trees"] * 3
    unpack_to(code.parent / "SkyRL", *send(store, code))
    assert read_tree(code.parent / "SkyRL") == read_tree(code)


def test_clean_removes_archives_but_not_sent_ones(code: Path, store: SnapshotStore, tmp_path: Path) -> None:
    """`clean` removes archives and counts their size. What another process sends meanwhile remains complete."""
    sent = send(store, code)
    size = sum(sizes(sent[0]).values())

    planned = store.remove_unused(dry_run=True)
    removed = store.remove_unused()

    assert planned is not None
    assert removed is not None
    assert planned.bytes == removed.bytes >= size
    assert not {"packs", "trees"} & set(cached(store))
    unpack_to(tmp_path / "SkyRL", *sent)
    assert read_tree(tmp_path / "SkyRL") == read_tree(code)
    sent[0].release()
    assert cached(store) == []


def test_recently_used_archives_are_kept(code: Path, store: SnapshotStore) -> None:
    """`clean --older-than` keeps archives that were used later."""
    send(store, code)[0].release()
    before = cached(store)

    store.remove_unused(used_before=1.0)

    assert cached(store) == before


@pytest.mark.parametrize("kind", ["trees", "packs", "indexes"])
@pytest.mark.parametrize("spoil", [shorten, Path.unlink, lambda path: path.write_bytes(b"")])
def test_damaged_cache_is_written_again(
    code: Path, store: SnapshotStore, tmp_path: Path, kind: str, spoil: Callable[[Path], object]
) -> None:
    """A file of the cache that is absent or incomplete does not affect the next run."""
    send(store, code)[0].release()
    (path,) = (ArchiveCache(store.folder).folder / kind).iterdir()
    spoil(path)
    (code / "folder0" / "file0.py").write_text("changed")

    unpack_to(tmp_path / "SkyRL", *send(store, code))

    assert read_tree(tmp_path / "SkyRL") == read_tree(code)


def test_files_of_killed_processes_are_removed(code: Path, store: SnapshotStore) -> None:
    """A folder of files to send whose process was killed is removed by the next run."""
    sending, _ = send(store, code)
    sending._lock.close()

    following, _ = send(store, code)

    assert not sending.path.exists()
    assert following.path.exists()


#: Sends a folder when its standard input is closed, unpacks the files, and prints whether they are complete.
SEND = """
import sys
from pathlib import Path
from skyrl_modal.mount import SnapshotStore
from tests.backends.modal.test_archive import read_tree, send, unpack_to
store, code, target = map(Path, sys.argv[1:])
print("ready", flush=True)
sys.stdin.read()
unpack_to(target, *send(SnapshotStore(store), code))
print(read_tree(target) == read_tree(code))
"""


def test_callers_at_the_same_time(code: Path, store: SnapshotStore, tmp_path: Path) -> None:
    """Processes that archive the same files at the same time all send them completely."""
    arguments = [sys.executable, "-c", SEND, str(store.folder), str(code)]
    callers = [
        subprocess.Popen([*arguments, str(tmp_path / f"SkyRL{number}")], stdin=PIPE, stdout=PIPE, text=True)
        for number in range(4)
    ]
    for caller in callers:
        assert caller.stdout is not None
        assert caller.stdout.readline() == "ready\n"

    assert [caller.communicate("")[0] for caller in callers] == ["True\n"] * 4


def test_time_in_the_future_is_no_change(code: Path, store: SnapshotStore) -> None:
    """A large file with a time in the future is sent with another one: Modal's client would refuse it."""
    large = code / "large"
    large.write_bytes(random.Random(1).randbytes(LARGE_CONTENT + 1))
    os.utime(large, (4e9, 4e9))

    sending, _ = send(store, code)

    assert all(path.stat().st_mtime < 3.9e9 for path in sending.path.iterdir())
