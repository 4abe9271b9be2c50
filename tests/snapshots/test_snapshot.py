"""Snapshots: exact, taken once for a content, unaffected by edits, limited in size, safe with several processes."""

from __future__ import annotations

import os
import random
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from skyrl_modal.errors import SnapshotError, SpecError
from skyrl_modal.mount import Snapshot, SnapshotStore, select


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return mode and content of everything in a folder, including links and empty folders."""
    found: dict[str, tuple[int, bytes]] = {}
    for path in folder.rglob("*"):
        name, mode = str(path.relative_to(folder)), path.lstat().st_mode
        if stat.S_ISLNK(mode):
            found[name] = (stat.S_IFLNK, os.fsencode(path.readlink()))
        elif stat.S_ISREG(mode):
            found[name] = (mode & 0o777, path.read_bytes())
        elif not any(path.iterdir()):
            found[name + "/"] = (0, b"")
    return found


@pytest.fixture
def root(tmp_path: Path, no_settings: Path) -> Path:
    """A folder with files of each kind."""
    folder = tmp_path / "checkout"
    (folder / "pkg" / "deep").mkdir(parents=True)
    (folder / "train.py").write_text("print(1)")
    (folder / "run.sh").write_text("true")
    (folder / "run.sh").chmod(0o755)
    (folder / "pkg" / "same.py").write_text("print(1)")
    (folder / "pkg" / "deep" / "large.bin").write_bytes(random.Random(0).randbytes(3 << 20))
    (folder / "pkg" / "link").symlink_to("deep")
    (folder / os.fsdecode(b"\xff\n")).write_text("odd")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    """An empty store."""
    return SnapshotStore(tmp_path / "store")


def inodes(folder: Path) -> set[int]:
    """Return the inodes of the files in a folder."""
    return {path.lstat().st_ino for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}


def stored_contents(store: SnapshotStore) -> list[Path]:
    """Return the files of the pool of contents."""
    return [path for path in (store.folder / "blobs").rglob("*") if path.is_file()]


def test_snapshot_contains_exactly_the_selection(root: Path, store: SnapshotStore) -> None:
    """Contents, links, permissions and unusual names are copied, no other file is, and none is shared."""
    (root / ".gitignore").write_text("*.log\n")
    before = contents(root)
    (root / "a.log").touch()
    (root / "empty").mkdir()
    selection = select(root)
    with store.take(selection) as snapshot:
        assert contents(snapshot.path) == before
        assert not inodes(snapshot.path) & inodes(root)
        assert snapshot.digest == selection.digest
        assert (snapshot.files, snapshot.bytes, snapshot.warnings) == (len(selection.files), selection.bytes, ())


def test_unchanged_tree_is_not_copied_again(root: Path, store: SnapshotStore) -> None:
    """The same content has the same folder, also in another checkout."""
    first = store.take(select(root))
    assert store.take(select(root)) == first
    other = root.with_name("clone")
    subprocess.run(["cp", "-a", str(root), str(other)], check=True)
    assert store.take(select(other)).path == first.path


def test_only_changed_files_are_read_again(root: Path, store: SnapshotStore) -> None:
    """Once the times of the files are old enough to show a change, only changed files are stored again."""
    store.take(select(root)).release()
    wait_for_a_later_tick(root)
    store.take(select(root)).release()
    for path in stored_contents(store):
        path.unlink()
    store.take(select(root)).release()
    assert stored_contents(store) == []
    (root / "train.py").write_text("print(2)")
    store.take(select(root)).release()
    assert [path.read_text() for path in stored_contents(store)] == ["print(2)"]


def wait_for_a_later_tick(folder: Path) -> None:
    """Wait until the existing files are older than the store's margin, by the clock of the file system."""
    probe = folder.parent / "probe"
    begin = None
    while begin is None or probe.stat().st_ctime_ns < begin + 60_000_000:
        probe.write_text(".")
        begin = begin or probe.stat().st_ctime_ns


@pytest.mark.parametrize("held", [False, True])
def test_edit_changes_only_the_next_snapshot(root: Path, store: SnapshotStore, held: bool) -> None:
    """An edit is in the next snapshot, whether that is built on the earlier one or the earlier one is locked."""
    first = store.take(select(root))
    before = contents(root)
    (root / "train.py").write_text("print(2)")
    (root / "run.sh").chmod(0o700)
    (root / "pkg" / "same.py").unlink()
    (root / "pkg" / "link").unlink()
    (root / "pkg" / "link").mkdir()
    (root / "pkg" / "link" / "x").write_text("now a folder")
    (root / "pkg" / "deep" / "large.bin").unlink()
    (root / "pkg" / "deep").rmdir()
    (root / "pkg" / "deep").write_text("now a file")
    if held:
        assert contents(first.path) == before
    else:
        first.release()
    second = store.take(select(root))
    assert contents(second.path) == contents(root)
    if held:
        assert contents(first.path) == before


def test_random_edits(root: Path, store: SnapshotStore) -> None:
    """After any sequence of edits a snapshot has the current files, and locked earlier ones are unchanged."""
    draw = random.Random(1)
    kept: list[tuple[Snapshot, dict[str, tuple[int, bytes]]]] = []
    for _ in range(40):
        for _ in range(draw.randint(0, 3)):
            path = root / draw.choice("abc") / draw.choice("abc") if draw.random() < 0.6 else root / draw.choice("xyz")
            if path.is_symlink() or path.exists():
                if draw.random() < 0.5:
                    path.unlink()
                    continue
            else:
                path.parent.mkdir(exist_ok=True)
            if path.is_symlink():
                path.unlink()
            if draw.random() < 0.2 and not path.exists():
                path.symlink_to(draw.choice("abc"))
            else:
                # All contents have one size, so that only time and inode show a change.
                path.write_text(f"{draw.randrange(10)}")
                path.chmod(draw.choice([0o644, 0o755]))
        snapshot = store.take(select(root))
        now = {name: entry for name, entry in contents(root).items() if not name.endswith("/")}
        assert contents(snapshot.path) == now
        if draw.random() < 0.3:
            kept.append((snapshot, now))
        else:
            snapshot.release()
        for earlier, then in kept[-3:]:
            assert contents(earlier.path) == then


def test_change_within_one_tick_is_found(root: Path, store: SnapshotStore) -> None:
    """A change is found although size, inode and often the time are the same."""
    for number in range(100):
        (root / "train.py").write_text(f"print({number:03})")
        with store.take(select(root)) as snapshot:
            assert (snapshot.path / "train.py").read_text() == f"print({number:03})"


def test_restored_time_does_not_hide_a_change(root: Path, store: SnapshotStore) -> None:
    """A change is found by the time of the inode if rsync or cp -p has restored the time of modification."""
    status = (root / "train.py").stat()
    wait_for_a_later_tick(root)
    store.take(select(root)).release()
    (root / "train.py").write_text("print(7)")
    os.utime(root / "train.py", ns=(status.st_atime_ns, status.st_mtime_ns))
    with store.take(select(root)) as snapshot:
        assert (snapshot.path / "train.py").read_text() == "print(7)"


def test_eviction_keeps_locked_snapshots(root: Path, store: SnapshotStore) -> None:
    """Above its limit a store removes the least recently used snapshots that are not locked."""
    small = SnapshotStore(store.folder, max_bytes=4 << 20)
    snapshots = []
    for number in range(4):
        (root / "pkg" / "deep" / "large.bin").write_bytes(random.Random(number).randbytes(2 << 20))
        snapshots.append(small.take(select(root)))
    assert all(snapshot.path.exists() for snapshot in snapshots)
    held = snapshots[0].duplicate_lock()
    for snapshot in snapshots[:3]:
        snapshot.release()
    (root / "train.py").write_text("print(3)")
    last = small.take(select(root))
    assert snapshots[0].path.exists()
    assert not snapshots[1].path.exists()
    assert not snapshots[2].path.exists()
    assert contents(last.path) == contents(root)
    os.close(held)
    (root / "train.py").write_text("print(4)")
    small.take(select(root))
    assert not snapshots[0].path.exists()
    assert sum(path.stat().st_size for path in stored_contents(store)) <= 4 << 20


def test_number_of_trees_is_limited(root: Path, store: SnapshotStore) -> None:
    """Trees are removed above a fixed number, even if they are small."""
    for number in range(50):
        folder = root.with_name(f"clone{number}")
        folder.mkdir()
        (folder / "a").write_text(str(number))
        store.take(select(folder)).release()
    assert len(os.listdir(store.folder / "trees")) <= 33


def test_child_process_keeps_a_snapshot_locked(root: Path, store: SnapshotStore) -> None:
    """A child process that inherited a duplicated lock keeps the snapshot after the parent has released it."""
    small = SnapshotStore(store.folder, max_bytes=0)
    snapshot = small.take(select(root))
    held = snapshot.duplicate_lock()
    assert os.get_inheritable(held)
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[held])
    os.close(held)
    snapshot.release()
    (root / "train.py").write_text("print(5)")
    small.take(select(root)).release()
    assert (snapshot.path / "train.py").read_text() == "print(1)"
    child.communicate()
    (root / "train.py").write_text("print(6)")
    small.take(select(root)).release()
    assert not snapshot.path.exists()


def test_released_snapshot_cannot_be_locked(root: Path, store: SnapshotStore) -> None:
    """The lock of a released snapshot cannot be duplicated, because the snapshot may have been removed."""
    snapshot = store.take(select(root))
    snapshot.release()
    snapshot.release()
    with pytest.raises(SnapshotError, match="take it again"):
        snapshot.duplicate_lock()


def test_evicted_content_is_copied_again(root: Path, store: SnapshotStore) -> None:
    """Contents that are missing in the pool are stored again."""
    store.take(select(root)).release()
    for path in stored_contents(store):
        path.unlink()
    (root / "train.py").write_text("print(8)")
    held = store.take(select(root))
    (root / "train.py").write_text("print(9)")
    with store.take(select(root)) as snapshot:
        assert contents(snapshot.path) == contents(root)
    assert (held.path / "train.py").read_text() == "print(8)"


@pytest.mark.parametrize("damage", ["truncate", "garbage", "remove"])
def test_damaged_stamps_count_as_missing(root: Path, store: SnapshotStore, damage: str) -> None:
    """With damaged or missing stamps a snapshot is correct; files are read again."""
    store.take(select(root)).release()
    (stamps,) = (store.folder / "stamps").iterdir()
    data = stamps.read_bytes()
    if damage == "remove":
        stamps.unlink()
    else:
        stamps.write_bytes(data[: len(data) // 2] if damage == "truncate" else data[:-1] + b"x")
    with store.take(select(root)) as snapshot:
        assert contents(snapshot.path) == contents(root)


def test_empty_selection(root: Path, store: SnapshotStore) -> None:
    """An empty selection has an empty snapshot, and the next snapshot is complete again."""
    store.take(select(root)).release()
    with store.take(select(root, exclude=["*"])) as snapshot:
        assert contents(snapshot.path) == {}
    with store.take(select(root)) as snapshot:
        assert contents(snapshot.path) == contents(root)


def test_modified_tree_is_not_built_on(root: Path, store: SnapshotStore) -> None:
    """Files that were removed from a tree or added to it by hand do not affect the next snapshot or any content."""
    first = store.take(select(root))
    first.release()
    (first.path / "train.py").unlink()
    (first.path / "new.py").write_text("by hand")
    (root / "train.py").write_text("print(2)")
    (root / "new.py").write_text("a new one")
    with store.take(select(root)) as snapshot:
        assert contents(snapshot.path) == contents(root)


def test_removed_files_are_reported(root: Path, store: SnapshotStore) -> None:
    """A file that was removed or replaced after the selection is reported, and the others are copied."""
    selection = select(root)
    (root / "train.py").unlink()
    (root / "run.sh").unlink()
    os.mkfifo(root / "run.sh")
    with store.take(selection) as snapshot:
        assert "train.py" not in contents(snapshot.path)
        assert any("train.py was removed" in warning for warning in snapshot.warnings)
        assert any("run.sh is no longer a file" in warning for warning in snapshot.warnings)


def test_file_that_keeps_changing_is_reported(root: Path, store: SnapshotStore) -> None:
    """A file that changes all the time is copied in one of its states, and read again for the next snapshot."""
    stop = threading.Event()
    target = root / "pkg" / "deep" / "large.bin"
    # Large enough that its time changes while it is read.
    os.truncate(target, 32 << 20)

    def write() -> None:
        number = 0
        descriptor = os.open(target, os.O_WRONLY)
        while not stop.is_set():
            number += 1
            os.pwrite(descriptor, number.to_bytes(8), 0)
        os.close(descriptor)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        snapshots = [store.take(select(root)) for _ in range(3)]
    finally:
        stop.set()
        writer.join()
    assert any("kept changing" in warning for snapshot in snapshots for warning in snapshot.warnings)
    with store.take(select(root)) as last:
        assert contents(last.path) == contents(root)
        assert last.warnings == ()


def test_several_processes(root: Path, store: SnapshotStore) -> None:
    """Processes that take snapshots from one store, with eviction, have the correct contents."""
    program = (
        "import sys, random, pathlib\n"
        "from skyrl_modal.mount import *\n"
        "root, seed = pathlib.Path(sys.argv[1]), int(sys.argv[3])\n"
        "for number in range(12):\n"
        "    (root / 'same').write_text(str(number % 3))\n"
        "    with SnapshotStore(sys.argv[2], max_bytes=100).take(select(root)) as snapshot:\n"
        "        assert (snapshot.path / 'same').read_text() == str(number % 3), number\n"
        "        assert (snapshot.path / 'own').read_text() == str(seed % 2)\n"
        "print('correct')\n"
    )

    def run(number: int) -> str:
        folder = root.with_name(f"r{number}")
        folder.mkdir()
        (folder / "own").write_text(str(number % 2))
        command = [sys.executable, "-c", program, str(folder), str(store.folder), str(number)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(run, range(6))) == {"correct\n"}


def test_store_among_the_files_is_refused(root: Path) -> None:
    """A store inside the selected files is refused, because it would copy itself."""
    store = SnapshotStore(root / "store")
    store.take(select(root)).release()
    with pytest.raises(SnapshotError, match="move it to another folder") as caught:
        store.take(select(root))
    assert caught.value.path == str(store.folder)


def test_removed_root(root: Path, store: SnapshotStore) -> None:
    """A root that was removed after the selection is an error, not an empty snapshot."""
    selection = select(root)
    root.rename(root.with_name("elsewhere"))
    with pytest.raises(SnapshotError, match="was removed") as caught:
        store.take(selection)
    assert caught.value.path == str(root)


def test_invalid_limits() -> None:
    """A limit that is not a whole number of bytes is an error."""
    for wrong in (-1, "1 GB", True):
        with pytest.raises(SpecError, match="max_bytes"):
            SnapshotStore(Path("x"), max_bytes=wrong)  # type: ignore[arg-type]  # an invalid type is the test
