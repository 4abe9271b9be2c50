"""Snapshots of so many files that several processes copy them."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from skyrl_modal.mount import Selection, Snapshot, SnapshotStore, select
from tests.support.small_mounts import run_with_mount

TAKE = """
import sys
from pathlib import Path
from skyrl_modal.mount import SnapshotStore, select
print(SnapshotStore(sys.argv[2]).take(select(Path(sys.argv[1]))).digest)
"""


def write_files(root: Path, draw: random.Random, number: int = 700) -> None:
    """Write files of all kinds: few different contents, empty and large ones, links, all permissions, odd names."""
    for index in range(number):
        folder = root / draw.choice(["", "a", "a/b", "c"]) / str(draw.randrange(60))
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / (draw.choice(["x", "ä", os.fsdecode(b"\xff"), "a\nb"]) + str(index))
        if draw.random() < 0.05:
            path.symlink_to(draw.choice(["x", "../a", "nowhere"]))
            continue
        path.write_bytes(draw.randbytes(draw.choice([0, 1, 100, 5_000])) if draw.random() < 0.7 else b"the same")
        path.chmod(draw.choice([0o644, 0o600, 0o755, 0o444]))
    (root / "large").write_bytes(draw.randbytes((1 << 20) + 1))


def contents(folder: Path) -> dict[bytes, tuple[int, bytes]]:
    """Return mode and content of each file and link in a folder."""
    found = {}
    for parent, folders, names in os.walk(os.fsencode(folder)):
        for name in [*names, *folders]:
            path = os.path.join(parent, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                found[os.path.relpath(path, os.fsencode(folder))] = (stat.S_IFLNK, os.readlink(path))
            elif stat.S_ISREG(mode):
                found[os.path.relpath(path, os.fsencode(folder))] = (mode & 0o777, Path(os.fsdecode(path)).read_bytes())
    return found


def unfinished(store: SnapshotStore) -> list[str]:
    """Return the names of files and folders in a store that are not in use."""
    names = [path.name for path in (store.folder / "blobs").iterdir() if not path.is_dir()]
    for name in ("trees", "stamps", "adding"):
        names += [
            path.name for path in (store.folder / name).iterdir() if path.name.startswith(".") or name == "adding"
        ]
    return names


def stored_bytes(store: SnapshotStore) -> int:
    """Return the size of the contents in a store."""
    return sum(path.stat().st_size for path in (store.folder / "blobs").rglob("*") if path.is_file())


def assert_complete(store: SnapshotStore, snapshot: Snapshot, selection: Selection) -> None:
    """Assert that a snapshot is equal to its selection, and that nothing else remains in the store."""
    assert snapshot.warnings == ()
    assert contents(snapshot.path) == contents(selection.root)
    assert (snapshot.digest, snapshot.files, snapshot.bytes) == (
        selection.digest,
        len(selection.files),
        selection.bytes,
    )
    assert unfinished(store) == []
    assert int((store.folder / "size").read_text()) == stored_bytes(store)


def wait_for_copies(store: SnapshotStore, process: subprocess.Popen[bytes]) -> None:
    """Wait until a process has copied the first files."""
    while not any((store.folder / "trees").glob(".new-*/*")):
        assert process.poll() is None


@pytest.fixture
def root(tmp_path: Path, no_settings: Path) -> Path:
    """A folder with files of each kind."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    write_files(folder, random.Random(0))
    return folder


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    """An empty store."""
    return SnapshotStore(tmp_path / "store")


@pytest.mark.parametrize("seed", range(4))
def test_any_files_and_edits(tmp_path: Path, no_settings: Path, store: SnapshotStore, seed: int) -> None:
    """Snapshots have the current files after many edits, which keep times and sizes; locked ones are unchanged."""
    draw = random.Random(seed)
    root = tmp_path / "root"
    root.mkdir()
    kept: list[tuple[Snapshot, dict[bytes, tuple[int, bytes]]]] = []
    for _ in range(3):
        write_files(root, draw)
        for path in [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]:
            status = path.stat()
            if draw.random() < 0.6:
                path.chmod(0o644)
                path.write_bytes(draw.randbytes(status.st_size))
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        snapshot = store.take(select(root), as_selected=draw.random() < 0.5)
        assert_complete(store, snapshot, select(root))
        if draw.random() < 0.5:
            kept.append((snapshot, contents(snapshot.path)))
        else:
            snapshot.release()
        assert all(contents(snapshot.path) == before for snapshot, before in kept)


def test_files_are_not_shared_with_the_checkout(root: Path, store: SnapshotStore) -> None:
    """A later edit in place does not affect the snapshot, and equal contents are stored once."""
    with store.take(select(root)) as snapshot:
        before = contents(snapshot.path)
        for path in root.rglob("*"):
            if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o200:
                with path.open("r+b") as file:
                    file.write(b"?")
        assert contents(snapshot.path) == before
        same = {name for name, (mode, data) in before.items() if (mode, data) == (0o644, b"the same")}
        assert len({os.lstat(os.path.join(os.fsencode(snapshot.path), name)).st_ino for name in same}) == 1


def test_equal_checkout_has_the_same_snapshot(root: Path, store: SnapshotStore) -> None:
    """A copy of the checkout has the same folder, and adds nothing to the store."""
    first = store.take(select(root))
    before = stored_bytes(store)
    other = root.with_name("clone")
    subprocess.run(["cp", "-a", root, other], check=True)
    second = store.take(select(other))
    assert second.path == first.path
    assert (stored_bytes(store), unfinished(store)) == (before, [])


@pytest.mark.parametrize("umask", [0, 0o77])
def test_modes_do_not_depend_on_the_umask(root: Path, store: SnapshotStore, umask: int) -> None:
    """Files have the permissions of the checkout, whatever the umask."""
    selection = select(root)
    before = os.umask(umask)
    try:
        snapshot = store.take(selection)
    finally:
        os.umask(before)
    assert_complete(store, snapshot, selection)


@pytest.mark.parametrize(
    "program",
    ["", "/nonexistent/python", "exit 1", "exit 0", f'{sys.executable} "$@"; exit 1', f'{sys.executable} "$@"; echo'],
)
def test_files_are_copied_without_other_processes(
    root: Path, store: SnapshotStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str
) -> None:
    """An interpreter that cannot be started, or fails before or after its work, takes time only."""
    if " " in program:
        script = tmp_path / "python"
        script.write_text(f"#!/bin/sh\n{program}\n")
        script.chmod(0o755)
        program = str(script)
    monkeypatch.setattr(sys, "executable", program)
    selection = select(root)
    assert_complete(store, store.take(selection), selection)


def test_paths_that_are_not_utf8(root: Path, tmp_path: Path) -> None:
    """The checkout and the store may have any path, whatever the locale of the other processes."""
    place = tmp_path / os.fsdecode(b"\xe4\xff \n")
    place.mkdir()
    root = root.rename(place / "checkout")
    argv = [sys.executable, "-X", "utf8", "-c", TAKE, root, place / "store"]
    environment = {**os.environ, "LC_ALL": "en_US.ISO-8859-1", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(argv, check=True, env=environment)
    store, selection = SnapshotStore(place / "store"), select(root)
    assert_complete(store, store.take(selection), selection)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([place.name, "home"])


def test_replaced_files_are_reported(root: Path, store: SnapshotStore) -> None:
    """Files that were removed, or replaced by a named pipe or a folder, are left out with a warning."""
    selection = select(root)
    names = [path for path in selection.files if (root / path).is_file()][:3]
    for name in names:
        (root / name).unlink()
    os.mkfifo(root / names[1])
    (root / names[2]).mkdir()

    with store.take(selection) as snapshot:
        assert [text.partition(" it is not")[0] for text in snapshot.warnings] == [
            f"{names[0]} was removed before it was copied (No such file or directory):",
            f"{names[1]} is no longer a file:",
            f"{names[2]} is no longer a file:",
        ]
        assert contents(snapshot.path) == contents(root)


def test_unfinished_contents_are_replaced(root: Path, store: SnapshotStore) -> None:
    """Contents of another size, as a killed process or a power failure leaves them, are replaced."""
    store.take(select(root)).release()
    stored = [path for path in (store.folder / "blobs").rglob("*") if path.is_file() and path.stat().st_size > 99]
    store.remove_unused()
    for path in stored:
        path.write_bytes(b"half of it")
    with store.take(select(root)) as snapshot:
        assert contents(snapshot.path) == contents(root)


def test_killed_process_leaves_nothing(root: Path, store: SnapshotStore) -> None:
    """The processes of a killed caller end before the store is used exclusively, and nothing of them remains."""
    write_files(root, random.Random(1), 4_000)
    process = subprocess.Popen([sys.executable, "-c", TAKE, str(root), str(store.folder)], stdout=subprocess.DEVNULL)
    wait_for_copies(store, process)
    # Stopped, so that it starts no further process between the two calls.
    process.send_signal(signal.SIGSTOP)
    copiers = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGKILL)
    process.wait()
    with open(store.folder / "lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
    # One that was still starting has copied nothing, but may hold the lock for a moment, in which nothing is removed.
    assert psutil.wait_procs(copiers, timeout=30)[1] == []

    selection = select(root)
    assert_complete(store, store.take(selection), selection)


def test_interrupted_process_leaves_nothing(root: Path, store: SnapshotStore) -> None:
    """After Ctrl-C the processes have ended and the unfinished tree is removed."""
    write_files(root, random.Random(1), 4_000)
    process = subprocess.Popen(
        [sys.executable, "-c", TAKE, str(root), str(store.folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for_copies(store, process)
    process.send_signal(signal.SIGINT)
    process.wait()
    with open(store.folder / "lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert list((store.folder / "trees").iterdir()) == []


def test_several_processes(root: Path, store: SnapshotStore) -> None:
    """Processes that take the first snapshot at the same time, of the same and of other files, have the right files."""
    other = root.with_name("other")
    other.mkdir()
    write_files(other, random.Random(2))

    def take(folder: Path) -> str:
        argv = [sys.executable, "-c", TAKE, str(folder), str(store.folder)]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()

    with ThreadPoolExecutor(4) as pool:
        digests = list(pool.map(take, [root, other, root, other]))

    assert digests == [select(root).digest, select(other).digest] * 2
    for folder in (root, other):
        with store.take(select(folder)) as snapshot:
            assert contents(snapshot.path) == contents(folder)


@pytest.mark.parametrize("options", ["size=2m", "size=40m,nr_inodes=300"])
def test_full_store(root: Path, tmp_path: Path, options: str) -> None:
    """A store without space or inodes is an error, and nothing unfinished remains."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom skyrl_modal.errors import SnapshotError\n"
        "from skyrl_modal.mount import SnapshotStore, select\n"
        "try:\n    SnapshotStore(sys.argv[2]).take(select(Path(sys.argv[1])))\n"
        "except SnapshotError as error:\n    print(error)\n"
        "print([path.name for path in Path(sys.argv[2]).rglob('*') if path.is_file() and path.stat().st_size > 1])\n"
    )
    folder = tmp_path / "cache"
    folder.mkdir()
    done = run_with_mount(folder, options, [sys.executable, "-c", program, str(root), str(folder / "store")])
    assert done.returncode == 0, done.stderr
    message, left = done.stdout.splitlines()
    assert "the files cannot be copied to this folder: No space left on device" in message
    assert left == "[]"
