"""A store of snapshots: one copy for each content."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import Attribute, field, frozen

from skyrl_modal.errors import SnapshotError, SpecError
from skyrl_modal.gitfiles.selection import Selection
from skyrl_modal.snapshots.capture import Capture
from skyrl_modal.snapshots.content_pool import ContentPool
from skyrl_modal.snapshots.snapshot import Snapshot

# Number of trees that are kept; each costs a folder entry for each of its files.
_MAX_TREES = 32
_ATTEMPTS = 3


def _absolute(folder: str | os.PathLike[str]) -> Path:
    return Path(folder).expanduser().absolute()


def _check_limit(_: object, attribute: Attribute[int], value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise SpecError(attribute.name, value, "give a number of bytes, 0 or more")


@frozen
class SnapshotStore:
    """Snapshots on this machine. The least recently used ones are removed when the store exceeds its limits.

    Several processes may use one store at the same time.

    Args:
        folder: The folder of the store, created if absent. On the file system of the checkout, contents may share
            their blocks with it instead of being copied.
        max_bytes: The size of all contents above which snapshots that are not locked are removed.

    Example:
        >>> import pathlib, tempfile
        >>> from skyrl_modal.mount import select
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> (folder / "code").mkdir()
        >>> _ = (folder / "code" / "train.py").write_text("print(1)")
        >>> store = SnapshotStore(folder / "store")
        >>> with store.take(select(folder / "code")) as snapshot:
        ...     (snapshot.path / "train.py").read_text()
        'print(1)'
    """

    folder: Path = field(converter=_absolute)
    max_bytes: int = field(default=20 * 1024**3, validator=_check_limit, kw_only=True)

    def take(self, selection: Selection) -> Snapshot:
        """Take a snapshot of a selection, or return an earlier one with the same content.

        A file that was removed or cannot be read is left out, and the snapshot's ``warnings`` report it.

        Args:
            selection: The files to copy.

        Returns:
            The snapshot, locked by the returned object.

        Raises:
            SnapshotError: The store is among the selected files, the selection's root was removed, or files change
                faster than they can be copied.
        """
        self._prepare(selection)
        with self._locked(fcntl.LOCK_SH):
            for _ in range(_ATTEMPTS):
                capture = Capture(self.folder, selection)
                snapshot = capture.run()
                if snapshot is not None:
                    break
            else:
                raise SnapshotError(str(selection.root), "files change faster than they can be copied: try again")
        if capture.added or capture.built:
            self._evict(capture.added)
        return snapshot

    def _prepare(self, selection: Selection) -> None:
        if self.folder.is_relative_to(selection.root) and any(
            (selection.root / path).is_relative_to(self.folder) for path in selection.files
        ):
            raise SnapshotError(str(self.folder), "the store is among the files to copy: move it to another folder")
        for name in ("blobs", "trees", "stamps"):
            (self.folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)

    @property
    def _pool(self) -> ContentPool:
        return ContentPool(self.folder / "blobs")

    @contextmanager
    def _locked(self, kind: int) -> Iterator[bool]:
        """Lock the store: shared to build trees, exclusively to remove them. Yield whether it could be locked."""
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, kind)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)

    def _evict(self, added: int) -> None:
        """Remove snapshots above the limits, unless a tree is being built; the next call then does so."""
        counter = self.folder / "usage"
        with self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB) as is_alone:
            if not is_alone:
                return
            trees = self.folder / "trees"
            known = counter.read_text() if counter.exists() else ""
            usage = int(known) + added if known.isdigit() else None
            names = os.listdir(trees)
            if usage is None or usage > self.max_bytes or len(names) > _MAX_TREES:
                usage = self._shrink(trees, names)
            counter.write_text(str(usage))

    def _shrink(self, trees: Path, names: list[str]) -> int:
        """Remove trees and contents until the store is within its limits; return the size of the contents."""
        for name in names:
            if name.startswith("."):
                # Its process has ended, since the exclusive lock shows that no tree is being built.
                shutil.rmtree(trees / name)
        oldest = [name for name in names if not name.startswith(".")]
        oldest.sort(key=lambda name: (trees / name).stat().st_mtime)
        total, unused = self._pool.find_unused()
        while total > self.max_bytes or len(oldest) > _MAX_TREES:
            if unused and total > self.max_bytes:
                for path, size in unused:
                    os.unlink(path)
                    total -= size
                unused = []
            elif oldest:
                if _remove_tree(trees, oldest.pop(0)):
                    total, unused = self._pool.find_unused()
            else:
                break
        return total


def _remove_tree(trees: Path, name: str) -> bool:
    """Remove a tree unless it is locked; return whether it was removed."""
    descriptor = os.open(trees / name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        removed = trees / f".removed-{name}"
        (trees / name).rename(removed)
        shutil.rmtree(removed)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
