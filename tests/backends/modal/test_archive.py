"""Tests of the archives in which files are sent to Modal: which files are sent, and which are not sent again."""

from __future__ import annotations

import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from skyrl_modal.backends.modal.archive import MAX_DIFFERENCES
from skyrl_modal.mount import SnapshotStore
from skyrl_modal.protocol.file_archive import LARGE_CONTENT
from skyrl_modal.snapshots.archive_cache import Sending
from tests.support.archives import read_tree, send, sizes, unpack_to, write_tree


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
