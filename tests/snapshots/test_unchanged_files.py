"""Files that count as unchanged have not changed, whatever the edits and the times."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skyrl_modal.mount import Selection, SnapshotStore, select
from skyrl_modal.snapshots.file_stamps import FileStamps, stamps_of

_FILES = ["a", "b", "folder/a", "folder/b"]


def rewrite(root: Path, name: str, text: str) -> None:
    """Write a text of the same size in place."""
    (root / name).write_text(text)


def rewrite_with_old_times(root: Path, name: str, text: str) -> None:
    """Write a text of the same size in place, and restore the times, as rsync does."""
    status = (root / name).stat()
    (root / name).write_text(text)
    os.utime(root / name, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace(root: Path, name: str, text: str) -> None:
    """Replace a file by another one of the same size and with the same times."""
    status = (root / name).stat()
    (root / "new").write_text(text)
    os.utime(root / "new", ns=(status.st_atime_ns, status.st_mtime_ns))
    (root / "new").rename(root / name)


def replace_folder(root: Path, name: str, text: str) -> None:
    """Replace the folder of a file by a copy of it with the same times, in which the file differs."""
    shutil.copytree(root / "folder", root / "copy")
    rewrite_with_old_times(root / "copy", Path(name).name, text)
    shutil.copystat(root / "folder", root / "copy")
    (root / "folder").rename(root / "old")
    (root / "copy").rename(root / "folder")
    shutil.rmtree(root / "old")


def swap(root: Path, name: str, text: str) -> None:
    """Exchange two files of the same size, whose times remain."""
    other = next(path for path in _FILES if path != name)
    (root / name).rename(root / "new")
    (root / other).rename(root / name)
    (root / "new").rename(root / other)


_EDITS = st.sampled_from([rewrite, rewrite_with_old_times, replace, replace_folder, swap])
_STEPS = st.lists(st.tuples(_EDITS, st.sampled_from(_FILES), st.sampled_from(["1", "2", "3"])), max_size=3)


def texts(folder: Path) -> dict[str, str]:
    """Return the text of each file."""
    return {name: (folder / name).read_text() for name in _FILES}


def take(store: SnapshotStore, selection: Selection, *, as_selected: bool) -> dict[str, str]:
    """Return the texts of the files of a snapshot."""
    with store.take(selection, as_selected=as_selected) as snapshot:
        return texts(snapshot.path)


@pytest.mark.usefixtures("no_settings")
@settings(max_examples=40, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(rounds=st.lists(st.tuples(_STEPS, st.booleans()), max_size=6))
def test_edits_in_one_tick_are_found(rounds: list[tuple[list[tuple[object, str, str]], bool]]) -> None:
    """A snapshot has the current texts after edits that keep sizes and times, and follow in one tick of the clock."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place).resolve() / "root"
        (root / "folder").mkdir(parents=True)
        for name in _FILES:
            (root / name).write_text("0")
        store = SnapshotStore(Path(place) / "store")
        for steps, as_selected in rounds:
            for edit, name, text in steps:
                edit(root, name, text)  # type: ignore[operator]  # functions do not have a common strategy type
            assert take(store, select(root), as_selected=as_selected) == texts(root)


def test_edit_after_the_selection_is_found_later(tmp_path: Path, no_settings: Path) -> None:
    """A snapshot without the edits since the selection does not hide them from the next one."""
    root = tmp_path / "root"
    (root / "folder").mkdir(parents=True)
    for name in _FILES:
        (root / name).write_text("0")
    store = SnapshotStore(tmp_path / "store")
    for text in ("1", "2", "3"):
        selection = select(root)
        before = texts(root)
        assert len(selection.statuses) == len(_FILES)
        (root / "a").write_text(text)
        assert take(store, selection, as_selected=True) in (before, texts(root))
        assert take(store, select(root), as_selected=True) == texts(root)
        assert take(store, selection, as_selected=False) == texts(root)


def test_file_removed_after_the_selection(tmp_path: Path, no_settings: Path) -> None:
    """A new file that was removed since its status was read is left out, with a warning."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "a").write_text("0")
    selection = select(root)
    assert len(selection.statuses) == 1
    (root / "a").unlink()
    with SnapshotStore(tmp_path / "store").take(selection, as_selected=True) as snapshot:
        assert snapshot.warnings == (
            "a was removed before it was copied (No such file or directory): it is not in the snapshot",
        )


@pytest.mark.parametrize("umask", [0, 0o22, 0o77])
@pytest.mark.parametrize("mode", [0o644, 0o755, 0o600, 0o666, 0o444])
def test_modes_do_not_depend_on_the_umask(tmp_path: Path, no_settings: Path, umask: int, mode: int) -> None:
    """A file has the same permissions in the snapshot, whatever the umask."""
    (tmp_path / "root").mkdir()
    for name, text in (("a", "text"), ("empty", "")):
        (tmp_path / "root" / name).write_text(text)
        (tmp_path / "root" / name).chmod(mode)
    before = os.umask(umask)
    try:
        with SnapshotStore(tmp_path / "store").take(select(tmp_path / "root")) as snapshot:
            modes = {(snapshot.path / name).stat().st_mode & 0o777 for name in ("a", "empty")}
    finally:
        os.umask(before)
    assert modes == {mode}


@pytest.mark.parametrize("inode", [1, 2**63 - 1, 2**63, 2**64 - 1])
def test_stamps_of_large_inodes(tmp_path: Path, inode: int) -> None:
    """Stamps differ for every inode of 64 bits, and are the same after they were saved."""
    times = {"st_atime_ns": 1, "st_mtime_ns": -5, "st_ctime_ns": 3}
    first, second = (os.stat_result((0o100644, number, 1, 1, 0, 0, 9, 0, 0, 0), times) for number in (inode, inode ^ 2))
    assert stamps_of([first]) != stamps_of([second])
    records = {"a": (stamps_of([first]), bytes(32)), "b\udcff": (stamps_of([second]), bytes(32))}
    FileStamps.of("00" * 32, records).save(tmp_path / "stamps")
    assert FileStamps.load(tmp_path / "stamps").records() == records
