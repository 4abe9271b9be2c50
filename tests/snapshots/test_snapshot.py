"""The copy that a run sees: exact, made once, never changed by an edit, bounded, and safe with many at once."""

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

from skyrl_modal.errors import SpecError
from skyrl_modal.mount import Snapshot, SnapshotStore, select


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Mode and content of all that is in a folder, links and empty folders included."""
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
    """The inodes of the files in a folder."""
    return {path.lstat().st_ino for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}


def test_it_holds_exactly_the_selection(root: Path, store: SnapshotStore) -> None:
    """Contents, links, permissions, odd names; no file shared with the checkout, nothing besides."""
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


def test_an_unchanged_tree_is_not_copied_again(root: Path, store: SnapshotStore) -> None:
    """The same content gives the same folder, also from another checkout."""
    read: list[tuple[int, int]] = []
    first = store.take(select(root), progress=lambda done, total: read.append((done, total)))
    assert read == [(number, 6) for number in range(1, 7)]
    assert store.take(select(root)) == first
    other = root.with_name("clone")
    subprocess.run(["cp", "-a", str(root), str(other)], check=True)
    assert store.take(select(other)).path == first.path


def test_only_what_changed_is_read_again(root: Path, store: SnapshotStore) -> None:
    """Once the times of the files are old enough to tell a change."""
    old = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    store.take(select(root)).release()
    wait_for_a_later_tick(root)
    store.take(select(root)).release()
    read: list[tuple[int, int]] = []
    store.take(select(root), progress=lambda done, total: read.append((done, total))).release()
    assert read == []
    old[0].write_text("print(2)")
    store.take(select(root), progress=lambda done, total: read.append((done, total))).release()
    assert read == [(1, 1)]


def wait_for_a_later_tick(folder: Path) -> None:
    """Waits until files that are there are older than the margin that the store leaves, by the file system's clock."""
    probe = folder.parent / "probe"
    begin = None
    while begin is None or probe.stat().st_ctime_ns < begin + 60_000_000:
        probe.write_text(".")
        begin = begin or probe.stat().st_ctime_ns


@pytest.mark.parametrize("held", [False, True])
def test_an_edit_reaches_the_next_snapshot_alone(root: Path, store: SnapshotStore, held: bool) -> None:
    """Whether the earlier one is built on, as nobody holds it, or kept, as somebody does."""
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
    """After any sequence of edits a snapshot is what is there, at once, and earlier ones are what they were."""
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
                # Of one size, so that time and inode have to tell a change.
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


def test_a_change_within_one_tick_is_seen(root: Path, store: SnapshotStore) -> None:
    """Same size, same inode, and, since nothing waits here, often the same time."""
    for number in range(100):
        (root / "train.py").write_text(f"print({number:03})")
        with store.take(select(root)) as snapshot:
            assert (snapshot.path / "train.py").read_text() == f"print({number:03})"


def test_a_restored_time_does_not_hide_a_change(root: Path, store: SnapshotStore) -> None:
    """rsync and cp -p set the time of modification; the inode's own time tells."""
    status = (root / "train.py").stat()
    wait_for_a_later_tick(root)
    store.take(select(root)).release()
    (root / "train.py").write_text("print(7)")
    os.utime(root / "train.py", ns=(status.st_atime_ns, status.st_mtime_ns))
    with store.take(select(root)) as snapshot:
        assert (snapshot.path / "train.py").read_text() == "print(7)"


def test_eviction_keeps_what_is_held(root: Path, store: SnapshotStore) -> None:
    """Above its limit a store removes the least recently used, but for those that somebody holds."""
    small = SnapshotStore(store.folder, max_bytes=4 << 20)
    snapshots = []
    for number in range(4):
        (root / "pkg" / "deep" / "large.bin").write_bytes(random.Random(number).randbytes(2 << 20))
        snapshots.append(small.take(select(root)))
    assert all(snapshot.path.exists() for snapshot in snapshots)
    held = snapshots[0].hold()
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
    size = sum(path.stat().st_size for path in (store.folder / "blobs").rglob("*") if path.is_file())
    assert size <= 4 << 20


def test_the_number_of_trees_is_bounded(root: Path, store: SnapshotStore) -> None:
    """Also where they share nearly all of their content."""
    for number in range(50):
        folder = root.with_name(f"clone{number}")
        folder.mkdir()
        (folder / "a").write_text(str(number))
        store.take(select(folder)).release()
    assert len(os.listdir(store.folder / "trees")) <= 33


def test_a_hold_outlives_the_process_that_took(root: Path, store: SnapshotStore) -> None:
    """A child that was started with the descriptor holds the snapshot, whatever becomes of who took it."""
    small = SnapshotStore(store.folder, max_bytes=0)
    snapshot = small.take(select(root))
    held = snapshot.hold()
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


def test_a_released_snapshot_cannot_be_held(root: Path, store: SnapshotStore) -> None:
    """It may be gone."""
    snapshot = store.take(select(root))
    snapshot.release()
    snapshot.release()
    with pytest.raises(SpecError, match="take it again"):
        snapshot.hold()


def test_an_evicted_content_is_copied_again(root: Path, store: SnapshotStore) -> None:
    """A store whose pool lost files, by eviction or by hand, makes them again."""
    store.take(select(root)).release()
    for path in (store.folder / "blobs").rglob("*"):
        if path.is_file():
            path.unlink()
    (root / "train.py").write_text("print(8)")
    held = store.take(select(root))
    (root / "train.py").write_text("print(9)")
    with store.take(select(root)) as snapshot:
        assert contents(snapshot.path) == contents(root)
    assert (held.path / "train.py").read_text() == "print(8)"


@pytest.mark.parametrize("damage", ["truncate", "garbage", "remove"])
def test_a_damaged_memory_costs_time_alone(root: Path, store: SnapshotStore, damage: str) -> None:
    """What the store remembers of the files may be lost."""
    store.take(select(root)).release()
    (memory,) = (store.folder / "stamps").iterdir()
    data = memory.read_bytes()
    if damage == "remove":
        memory.unlink()
    else:
        memory.write_bytes(data[: len(data) // 2] if damage == "truncate" else data[:-1] + b"x")
    with store.take(select(root)) as snapshot:
        assert contents(snapshot.path) == contents(root)


def test_an_emptied_checkout(root: Path, store: SnapshotStore) -> None:
    """Is an empty snapshot, and the next one is whole again."""
    store.take(select(root)).release()
    with store.take(select(root, exclude=["*"])) as snapshot:
        assert contents(snapshot.path) == {}
    with store.take(select(root)) as snapshot:
        assert contents(snapshot.path) == contents(root)


def test_a_tree_that_somebody_changed_is_not_built_on(root: Path, store: SnapshotStore) -> None:
    """What was removed from it or put into it by hand is not in the next one, nor is any content overwritten."""
    first = store.take(select(root))
    first.release()
    (first.path / "train.py").unlink()
    (first.path / "new.py").write_text("by hand")
    (root / "train.py").write_text("print(2)")
    (root / "new.py").write_text("a new one")
    with store.take(select(root)) as snapshot:
        assert contents(snapshot.path) == contents(root)


def test_what_vanished_is_told(root: Path, store: SnapshotStore) -> None:
    """The rest is copied."""
    selection = select(root)
    (root / "train.py").unlink()
    (root / "run.sh").unlink()
    os.mkfifo(root / "run.sh")
    with store.take(selection) as snapshot:
        assert "train.py" not in contents(snapshot.path)
        assert any("train.py is gone" in warning for warning in snapshot.warnings)
        assert any("run.sh is not a file" in warning for warning in snapshot.warnings)


def test_a_file_that_keeps_changing_is_told(root: Path, store: SnapshotStore) -> None:
    """It is one of its states, not a hang; the next snapshot looks at it again."""
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


def test_many_at_once(root: Path, store: SnapshotStore) -> None:
    """Processes that take the same and other content from one store, under eviction, get what they ask for."""
    program = (
        "import sys, random, pathlib\n"
        "from skyrl_modal.mount import *\n"
        "root, seed = pathlib.Path(sys.argv[1]), int(sys.argv[3])\n"
        "for number in range(12):\n"
        "    (root / 'same').write_text(str(number % 3))\n"
        "    with SnapshotStore(sys.argv[2], max_bytes=100).take(select(root)) as snapshot:\n"
        "        assert (snapshot.path / 'same').read_text() == str(number % 3), number\n"
        "        assert (snapshot.path / 'own').read_text() == str(seed % 2)\n"
        "print('well')\n"
    )

    def run(number: int) -> str:
        folder = root.with_name(f"r{number}")
        folder.mkdir()
        (folder / "own").write_text(str(number % 2))
        command = [sys.executable, "-c", program, str(folder), str(store.folder), str(number)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(run, range(6))) == {"well\n"}


def test_a_store_among_the_files_is_refused(root: Path) -> None:
    """It would copy itself."""
    store = SnapshotStore(root / "store")
    store.take(select(root)).release()
    with pytest.raises(SpecError, match="move it out"):
        store.take(select(root))


def test_a_root_that_is_gone(root: Path, store: SnapshotStore) -> None:
    """Is not an empty snapshot."""
    selection = select(root)
    root.rename(root.with_name("elsewhere"))
    with pytest.raises(SpecError, match="is gone"):
        store.take(selection)


def test_wrong_limits() -> None:
    """A limit is a number of bytes."""
    for wrong in (-1, "1 GB", True):
        with pytest.raises(SpecError, match="max_bytes"):
            SnapshotStore(Path("x"), max_bytes=wrong)  # type: ignore[arg-type]  # wrong on purpose
