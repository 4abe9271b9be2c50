"""A snapshot, and the lock that prevents its removal."""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path
from types import TracebackType

from skyrl_modal.declaration import evolve, field, frozen
from skyrl_modal.errors import SnapshotError
from skyrl_modal.gitfiles.digest import file_digest
from skyrl_modal.snapshots.file_stamps import FileStamps

#: Normalized mode and SHA-256 of files, by their paths.
Entries = dict[str, tuple[int, bytes]]


class SharedLock:
    """An open descriptor of a snapshot's folder with a shared lock on it. It is closed with its owner.

    Attributes:
        descriptor: The descriptor.
        close: Closes the descriptor; further calls do nothing.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.close = weakref.finalize(self, os.close, descriptor)


@frozen
class Snapshot:
    """A folder that contains exactly the files of a selection, as they were when the snapshot was taken.

    The snapshot is not removed from its store while this object exists and is not released. It can be used in a
    ``with`` statement, which releases it at the end. Its files are shared with other snapshots and must not be written.

    Attributes:
        path: The folder.
        digest: The digest of paths, permissions and contents.
        files: The number of files.
        bytes: The size of the files together.
        warnings: Messages about files that could not be copied, or changed while they were copied.
    """

    path: Path
    digest: str
    files: int
    bytes: int
    warnings: tuple[str, ...] = ()
    _lock: SharedLock = field(kw_only=True, repr=False, eq=False)
    _stamps: Path | None = field(default=None, kw_only=True, repr=False, eq=False)

    def entries(self) -> Entries:
        """Return normalized mode and SHA-256 of each file and link, by its path below the folder.

        The SHA-256 of a link is the one of its target's path. Files are only read if a later snapshot of the same
        folder was taken meanwhile.
        """
        known = FileStamps() if self._stamps is None else FileStamps.load(self._stamps)
        if known.digest.hex() == self.digest:
            return known.entries()
        top = os.fspath(self.path)
        paths = [
            os.path.join(folder, name) for folder, subfolders, names in os.walk(top) for name in [*names, *subfolders]
        ]
        files = [path for path in paths if os.path.islink(path) or not os.path.isdir(path)]
        return {path[len(top) + 1 :]: file_digest(path) for path in files}

    def duplicate_lock(self) -> int:
        """Return a descriptor that also prevents the removal of the snapshot, until it and its copies are closed.

        Child processes that are started with it (``pass_fds``) inherit it. The caller closes it.

        Raises:
            SnapshotError: The snapshot was released.
        """
        if not self._lock.close.alive:
            raise SnapshotError(str(self.path), "the snapshot was released: take it again")
        descriptor = os.dup(self._lock.descriptor)
        os.set_inheritable(descriptor, True)
        return descriptor

    def share(self) -> Snapshot:
        """Return an object for the same snapshot that is released separately.

        Raises:
            SnapshotError: The snapshot was released.
        """
        descriptor = self.duplicate_lock()
        os.set_inheritable(descriptor, False)
        return evolve(self, lock=SharedLock(descriptor))

    def release(self) -> None:
        """Release this object's lock on the snapshot. Duplicated locks are not affected."""
        self._lock.close()

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def find_snapshot(store: Path, digest: str) -> Snapshot | None:
    """Return a snapshot that was taken before, locked; None if the store has none with the digest.

    Its number of files and its size are not known.

    Args:
        store: The folder of the store.
        digest: The digest.

    Raises:
        OSError: It cannot be opened.
    """
    path = store / "trees" / digest
    lock = lock_tree(path)
    return None if lock is None else Snapshot(path, digest, 0, 0, lock=lock)


def lock_tree(path: Path) -> SharedLock | None:
    """Return a shared lock on a published tree, or None if there is no such tree."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        lock = SharedLock(descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if is_at(descriptor, path):
            return lock
        # The folder was removed or renamed between open() and flock().
        lock.close()


def is_at(descriptor: int, path: Path) -> bool:
    """Return whether an open folder is still at its path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
