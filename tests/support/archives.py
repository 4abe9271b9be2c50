"""Folders, snapshots and archives for tests of how files are sent to Modal."""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path

import pytest

from skyrl_modal.backends.modal.archive import files_to_send
from skyrl_modal.container import unpack
from skyrl_modal.container.unpack import unpack_mounts
from skyrl_modal.mount import Snapshot, SnapshotStore, select
from skyrl_modal.snapshots.archive_cache import Sending

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


def shorten(path: Path) -> None:
    """Remove the last byte of a file."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1])


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
