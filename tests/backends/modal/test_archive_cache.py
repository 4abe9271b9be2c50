"""Tests of the cache of archives: its limits, its removal, damage, and use by several processes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE

import pytest

from skyrl_modal.mount import SnapshotStore
from skyrl_modal.protocol.file_archive import LARGE_CONTENT
from skyrl_modal.snapshots import archive_cache
from skyrl_modal.snapshots.archive_cache import ArchiveCache
from tests.support.archives import read_tree, send, shorten, sizes, unpack_to
from tests.support.small_mounts import run_with_mount

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
from tests.support.archives import read_tree, send, unpack_to
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
