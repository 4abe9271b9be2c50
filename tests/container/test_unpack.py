"""Tests of the creation of mounted files in a container."""

from __future__ import annotations

import hashlib
import io
import os
import random
import stat
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from skyrl_modal.container.failures import StartError
from skyrl_modal.container.unpack import unpack_mounts
from skyrl_modal.mount import SnapshotStore
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
from tests.support.archives import read_tree, send, shorten, sizes, unpack_to
from tests.support.small_mounts import run_with_mount


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
