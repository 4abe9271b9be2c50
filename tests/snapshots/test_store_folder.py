"""The folder of a store: private, and usable again after a full disk, a killed process or a removal."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from skyrl_modal.errors import SnapshotError
from skyrl_modal.mount import SnapshotStore, select
from tests.support.small_mounts import run_with_mount

#: Takes a snapshot in a store with too little space, then one with enough.
FULL_STORE = """
import os, subprocess, sys
from pathlib import Path
from skyrl_modal.errors import SnapshotError
from skyrl_modal.mount import SnapshotStore, select
root, folder, larger = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
store = SnapshotStore(folder / "store")
try:
    store.take(select(root))
except SnapshotError as error:
    print(error)
names = [path for path in store.folder.rglob("*") if path.is_file() and path.stat().st_size]
assert all(path.name == "size" for path in names), names
subprocess.run(["mount", "-o", f"remount,{larger}", folder], check=True)
(folder / "fill").unlink(missing_ok=True)
with store.take(select(root)) as snapshot:
    assert len(snapshot.warnings) == 0, snapshot.warnings
    assert (snapshot.path / "large").stat().st_size == 3 << 20
print("complete")
"""

#: Takes a snapshot and is killed when it calls a function for the first time.
KILLED = """
import os, signal, sys
from pathlib import Path
from skyrl_modal.mount import SnapshotStore, select
from skyrl_modal.snapshots import capture, content_pool, file_stamps
module, _, name = sys.argv[1].partition(".")
owner = {"pool": content_pool.ContentPool, "capture": capture.Capture, "stamps": file_stamps.Path,
    "lock": capture}[module]
setattr(owner, name, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
SnapshotStore(sys.argv[3]).take(select(Path(sys.argv[2])))
"""


@pytest.fixture
def root(tmp_path: Path, no_settings: Path) -> Path:
    """A folder with a small and a large file."""
    folder = tmp_path / "checkout"
    (folder / "pkg").mkdir(parents=True)
    (folder / "pkg" / "small").write_text("1")
    (folder / "large").write_bytes(os.urandom(3 << 20))
    return folder


def unfinished(folder: Path) -> list[str]:
    """Return the names of files and folders in a store that are not in use."""
    names = [path.name for path in (folder / "blobs").iterdir() if not path.is_dir()]
    for name in ("trees", "stamps", "adding"):
        names += [path.name for path in (folder / name).iterdir() if path.name.startswith(".") or name == "adding"]
    return names


def stored_bytes(folder: Path) -> int:
    """Return the size of the contents in a store."""
    return sum(path.stat().st_size for path in (folder / "blobs").rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("options", "larger", "fill"),
    [
        ("size=2m", "size=20m", ""),
        ("size=20m", "size=20m", "head -c 30000000 /dev/zero >fill 2>/dev/null; true"),
        ("size=20m,nr_inodes=10", "nr_inodes=1000", ""),
        ("size=20m,nr_inodes=15", "nr_inodes=1000", ""),
    ],
)
def test_full_store(root: Path, tmp_path: Path, options: str, larger: str, fill: str) -> None:
    """A store without space or inodes is an error with its path; nothing unfinished remains, and the next try works."""
    folder = tmp_path / "cache"
    folder.mkdir()
    command = [sys.executable, "-c", FULL_STORE, str(root), str(folder), larger]

    done = run_with_mount(folder, options, command, prepare=fill or "true")

    assert done.returncode == 0, done.stderr
    message, complete = done.stdout.splitlines()
    assert message.startswith(f"{folder / 'store'}: the files cannot be copied to this folder: No space left on device")
    assert complete == "complete"


def test_full_store_is_emptied_first(root: Path, tmp_path: Path) -> None:
    """A store on a full disk removes its unused snapshots to take a new one."""
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom skyrl_modal.mount import SnapshotStore, select\n"
        "for number in range(3):\n"
        "    (Path(sys.argv[1]) / 'large').write_bytes(os.urandom(3 << 20))\n"
        "    SnapshotStore(Path(sys.argv[2]) / 'store').take(select(Path(sys.argv[1]))).release()\n"
    )
    folder = tmp_path / "cache"
    folder.mkdir()

    done = run_with_mount(folder, "size=5m", [sys.executable, "-c", program, str(root), str(folder)])

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "moment",
    [
        "pool._publish",
        "pool._create",
        "capture._update_tree",
        "capture._publish_tree",
        "stamps.replace",
        "lock.lock_tree",
    ],
)
def test_killed_process_leaves_nothing(root: Path, tmp_path: Path, moment: str) -> None:
    """What a killed process leaves is removed or accounted by the next snapshot."""
    folder = tmp_path / "store"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, moment, str(root), str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == -9, done.stderr
    (root / "large").write_bytes(b"")

    SnapshotStore(folder).take(select(root)).release()

    assert unfinished(folder) == []
    assert int((folder / "size").read_text()) == stored_bytes(folder)


def test_killed_process_does_not_exceed_the_limit(root: Path, tmp_path: Path) -> None:
    """Contents that a killed process has stored count towards the limit of the store."""
    folder = tmp_path / "store"
    for _ in range(3):
        (root / "large").write_bytes(os.urandom(3 << 20))
        command = [sys.executable, "-c", KILLED, "capture._update_tree", str(root), str(folder)]
        assert subprocess.run(command, check=False).returncode == -9
    assert stored_bytes(folder) > 9 << 20

    (root / "large").write_bytes(b"")
    SnapshotStore(folder, max_bytes=1 << 20).take(select(root)).release()

    assert stored_bytes(folder) <= 1 << 20


def test_concurrent_additions_are_measured(root: Path, tmp_path: Path) -> None:
    """A store whose size another process has not recorded is measured again."""
    folder = tmp_path / "store"
    store = SnapshotStore(folder)
    store.take(select(root)).release()
    (folder / "adding" / "of-a-killed-process").touch()
    (folder / "size").write_text("0")
    (root / "pkg" / "small").write_text("2")

    store.take(select(root)).release()

    assert int((folder / "size").read_text()) == stored_bytes(folder)


@pytest.mark.parametrize("record", ["", "-1", "1e9", "\0", "9" * 5000, "٣"])
def test_damaged_size_is_measured(root: Path, tmp_path: Path, record: str) -> None:
    """A damaged record of the size is replaced."""
    folder = tmp_path / "store"
    store = SnapshotStore(folder)
    store.take(select(root)).release()
    (folder / "size").write_text(record)
    (root / "pkg" / "small").write_text("2")

    store.take(select(root)).release()

    assert int((folder / "size").read_text()) == stored_bytes(folder)


@pytest.mark.parametrize("content", [b"", b"half"])
def test_truncated_content_is_replaced(root: Path, tmp_path: Path, content: bytes) -> None:
    """A content that a power failure has truncated is stored again when a file with it is read."""
    store = SnapshotStore(tmp_path / "store")
    store.take(select(root)).release()
    for path in (tmp_path / "store" / "blobs").rglob("*"):
        if path.is_file():
            path.unlink()
            path.write_bytes(content)
    shutil.rmtree(tmp_path / "store" / "trees")
    shutil.rmtree(tmp_path / "store" / "stamps")

    with store.take(select(root)) as snapshot:
        assert (snapshot.path / "large").read_bytes() == (root / "large").read_bytes()


@pytest.mark.parametrize("name", ["store", "store/blobs", "store/trees", "store/stamps", "store/adding", "store/lock"])
def test_file_in_place_of_a_folder(root: Path, tmp_path: Path, name: str) -> None:
    """A store that cannot be created is an error with its path, and not an empty snapshot."""
    store = SnapshotStore(tmp_path / "store")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    if name == "store/lock":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).touch()

    with pytest.raises(SnapshotError) as caught:
        store.take(select(root))

    assert caught.value.path == str(tmp_path / "store")


def test_read_only_store(root: Path, tmp_path: Path) -> None:
    """A store on a file system that is read-only is an error with its path."""
    folder = tmp_path / "cache"
    folder.mkdir()
    program = (
        "import sys\nfrom pathlib import Path\nfrom skyrl_modal.errors import SnapshotError\n"
        "from skyrl_modal.mount import SnapshotStore, select\n"
        "try:\n    SnapshotStore(sys.argv[2]).take(select(Path(sys.argv[1])))\n"
        "except SnapshotError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", program, str(root), str(folder / "store")]

    done = run_with_mount(folder, "size=2m", command, prepare=f"mount -o remount,ro {folder}")

    expected = f"{folder / 'store'}: the files cannot be copied to this folder: Read-only file system."
    assert (done.stdout.strip(), done.stderr) == (expected, "")


def test_store_removed_while_it_is_used(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is removed while files are copied is an error, and the next snapshot is complete."""
    from skyrl_modal.snapshots.content_pool import ContentPool

    store = SnapshotStore(tmp_path / "store")
    copy = ContentPool._copy_large

    def remove_and_copy(pool: ContentPool, source: int, path: str) -> tuple[str, bytes]:
        shutil.rmtree(store.folder)
        return copy(pool, source, path)

    with monkeypatch.context() as patch:
        patch.setattr(ContentPool, "_copy_large", remove_and_copy)
        with pytest.raises(SnapshotError) as caught:
            store.take(select(root))
    assert caught.value.path == str(store.folder)

    with store.take(select(root)) as snapshot:
        assert snapshot.warnings == ()


def test_trees_on_another_file_system(root: Path, tmp_path: Path) -> None:
    """Contents are copied into trees that are on another file system than the pool."""
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom skyrl_modal.mount import SnapshotStore, select\n"
        "with SnapshotStore(sys.argv[2]).take(select(Path(sys.argv[1]))) as snapshot:\n"
        "    assert (snapshot.path / 'large').read_bytes() == (Path(sys.argv[1]) / 'large').read_bytes()\n"
    )
    trees = tmp_path / "store" / "trees"
    trees.mkdir(parents=True)

    done = run_with_mount(trees, "size=20m", [sys.executable, "-c", program, str(root), str(trees.parent)])

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_folders_are_private(root: Path, tmp_path: Path, umask: int) -> None:
    """Only the user may enter a store, whatever the umask; existing folders are corrected."""
    folder = tmp_path / "new" / "store"
    before = os.umask(umask)
    try:
        SnapshotStore(folder).take(select(root)).release()
    finally:
        os.umask(before)
    places = [folder.parent, folder, *(folder / name for name in ("blobs", "trees", "stamps", "adding"))]
    assert {stat.S_IMODE(path.stat().st_mode) for path in places} == {0o700}

    (folder / "blobs").chmod(0o777)
    SnapshotStore(folder).take(select(root)).release()

    assert stat.S_IMODE((folder / "blobs").stat().st_mode) == 0o700
