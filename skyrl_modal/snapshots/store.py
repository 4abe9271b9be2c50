"""A store of snapshots: one copy for each content."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
from collections.abc import Iterator
from pathlib import Path

from skyrl_modal.dataclass import dataclass
from skyrl_modal.declaration import Attribute, field, frozen
from skyrl_modal.errors import SnapshotError, SpecError
from skyrl_modal.gitfiles.selection import Selection
from skyrl_modal.snapshots.archive_cache import ArchiveCache
from skyrl_modal.snapshots.capture import Capture
from skyrl_modal.snapshots.content_pool import ContentPool
from skyrl_modal.snapshots.snapshot import Snapshot
from skyrl_modal.snapshots.usage import Additions, UsageRecord
from skyrl_modal.user_folders import make_private_folder

# Number of trees that are kept; each costs a folder entry for each of its files.
_MAX_TREES = 32
#: Number of folders whose stamps are kept; they have about 150 bytes for each file.
_MAX_STAMPS = 64
_FOLDERS = ("blobs", "trees", "stamps", "adding")
#: The name of a folder's stamps is a SHA-256.
_STAMPS_NAME_LENGTH = 64
_ATTEMPTS = 3


def _absolute(folder: str | os.PathLike[str]) -> Path:
    return Path(folder).expanduser().absolute()


def _check_limit(_: object, attribute: Attribute[int], value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise SpecError(attribute.name, value, "give a number of bytes, 0 or more")


@dataclass(frozen=True, slots=True)
class RemovedSnapshots:
    """What ``SnapshotStore.remove_unused`` removed.

    Attributes:
        number: The number of snapshots.
        bytes: The size of the contents that no other snapshot has, and of archives.
    """

    number: int
    bytes: int


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

    def take(self, selection: Selection, *, as_selected: bool = False) -> Snapshot:
        """Take a snapshot of a selection, or return an earlier one with the same content.

        A file that was removed or cannot be read is left out, and the snapshot's ``warnings`` report it.

        Args:
            selection: The files to copy.
            as_selected: Whether a file counts as unchanged if it was so when ``selection.statuses`` was read. The
                statuses are then not read again, and an edit between that time and now may not be in the snapshot.

        Returns:
            The snapshot, locked by the returned object.

        Raises:
            SnapshotError: The store is among the selected files, or cannot be written to; the selection's root was
                removed; or files change faster than they can be copied.
        """
        if self.folder.is_relative_to(selection.root) and any(
            (selection.root / path).is_relative_to(self.folder) for path in selection.files
        ):
            raise SnapshotError(str(self.folder), "the store is among the files to copy: move it to another folder")
        try:
            self._prepare()
            try:
                return self._take(selection, as_selected=as_selected)
            except OSError as error:
                if not _is_full(error):
                    raise
            self.clear()
            try:
                return self._take(selection, as_selected=False)
            except OSError:
                with contextlib.suppress(OSError):
                    self.clear()
                raise
        except OSError as error:
            raise self._describe(error, selection) from error

    def _describe(self, error: OSError, selection: Selection) -> SnapshotError:
        if isinstance(error.filename, str) and Path(error.filename).is_relative_to(selection.root):
            return SnapshotError(error.filename, f"cannot be read: {error.strerror}")
        remedy = " Free some space, or set XDG_CACHE_HOME to a folder with more space." if _is_full(error) else ""
        return SnapshotError(str(self.folder), f"the files cannot be copied to this folder: {error.strerror}.{remedy}")

    def _prepare(self) -> None:
        """Create the folders of the store, and remove what killed processes have not finished."""
        if not self.folder.is_dir():
            make_private_folder(self.folder)
        for name in _FOLDERS:
            make_private_folder(self.folder / name)
        with self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB) as is_alone:
            if is_alone:
                self._remove_unfinished()
                if not any(os.scandir(self.folder / "blobs")):
                    UsageRecord(self.folder).write(0)

    def _take(self, selection: Selection, *, as_selected: bool) -> Snapshot:
        additions = Additions(self.folder, self._pool)
        with self._locked(fcntl.LOCK_SH):
            for attempt in range(_ATTEMPTS):
                capture = Capture(self.folder, selection, additions, as_selected=as_selected and attempt == 0)
                snapshot = capture.run()
                if snapshot is not None:
                    break
            else:
                raise SnapshotError(str(selection.root), "files change faster than they can be copied: try again")
        if additions.marker is not None or capture.built:
            # The snapshot is complete. What cannot be removed now is removed by a later call.
            with contextlib.suppress(OSError):
                self._evict(additions)
        return snapshot

    def clear(self) -> None:
        """Remove all snapshots and contents that are not in use, unless another process takes a snapshot now.

        Raises:
            OSError: They cannot be removed.
        """
        with self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB) as is_alone:
            if is_alone:
                self._remove_unfinished()
                ArchiveCache(self.folder).remove_unused(math.inf, dry_run=False)
                UsageRecord(self.folder).write(self._shrink(max_bytes=0, max_trees=0))

    def remove_unused(self, *, used_before: float = math.inf, dry_run: bool = False) -> RemovedSnapshots | None:
        """Remove snapshots that are not in use, the contents that only they have, and archives.

        Args:
            used_before: Time in seconds since the epoch; snapshots that were used later are kept.
            dry_run: Whether to return what would be removed, and remove nothing.

        Returns:
            What was removed. None if another process takes a snapshot now, so that nothing could be removed.

        Raises:
            OSError: Something cannot be removed.
        """
        if not all((self.folder / name).is_dir() for name in _FOLDERS):
            return RemovedSnapshots(0, 0)
        with self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB) as is_alone:
            if not is_alone:
                return None
            trees = [path for path in self._trees() if path.stat().st_mtime < used_before and not _is_locked(path)]
            stamps = [path for path in (self.folder / "stamps").iterdir() if path.stat().st_mtime < used_before]
            contents, total = self._pool.find_freed(trees)
            freed = sum(size for _, size in contents)
            archives = ArchiveCache(self.folder).remove_unused(used_before, dry_run=dry_run)
            if not dry_run:
                self._remove_unfinished()
                for path in trees:
                    _remove_tree(path.parent, path.name)
                for content, _ in contents:
                    os.unlink(content)
                for path in stamps:
                    path.unlink(missing_ok=True)
                UsageRecord(self.folder).write(total - freed)
            return RemovedSnapshots(len(trees), freed + archives)

    def _trees(self) -> list[Path]:
        """Return the finished trees, the least recently used first."""
        trees = self.folder / "trees"
        return _oldest_first(trees, [name for name in os.listdir(trees) if not name.startswith(".")])

    def _remove_unfinished(self) -> None:
        """Remove unfinished files and trees. Their processes have ended, since the lock is held exclusively."""
        self._pool.remove_unfinished()
        for name in os.listdir(self.folder / "stamps"):
            if len(name) != _STAMPS_NAME_LENGTH:
                os.unlink(self.folder / "stamps" / name)
        for name in os.listdir(self.folder / "trees"):
            if name.startswith("."):
                import shutil  # imported here, since most stores have none

                shutil.rmtree(self.folder / "trees" / name, ignore_errors=True)

    @property
    def _pool(self) -> ContentPool:
        return ContentPool(self.folder / "blobs")

    @contextlib.contextmanager
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

    def _evict(self, additions: Additions) -> None:
        """Remove snapshots above the limits, unless a tree is being built; the next call then does so."""
        record = UsageRecord(self.folder)
        with self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB) as is_alone:
            if not is_alone:
                return
            usage = record.read(additions)
            trees = sum(not name.startswith(".") for name in os.listdir(self.folder / "trees"))
            if usage is None or usage > self.max_bytes or trees > _MAX_TREES:
                usage = self._shrink(max_bytes=self.max_bytes, max_trees=_MAX_TREES)
            record.write(usage)
            stamps = os.listdir(self.folder / "stamps")
            if len(stamps) > _MAX_STAMPS:
                for path in _oldest_first(self.folder / "stamps", stamps)[:-_MAX_STAMPS]:
                    path.unlink()

    def _shrink(self, *, max_bytes: int, max_trees: int) -> int:
        """Remove trees and contents until the store is within limits; return the size of the contents."""
        trees, oldest = self.folder / "trees", self._trees()
        total, unused = self._pool.find_unused()
        while total > max_bytes or len(oldest) > max_trees:
            if unused and total > max_bytes:
                for path, size in unused:
                    os.unlink(path)
                    total -= size
                unused = []
            elif oldest:
                if _remove_tree(trees, oldest.pop(0).name):
                    total, unused = self._pool.find_unused()
            else:
                break
        return total


def _is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _oldest_first(folder: Path, names: list[str]) -> list[Path]:
    return sorted((folder / name for name in names), key=lambda path: path.stat().st_mtime)


def _is_locked(tree: Path) -> bool:
    """Return whether a snapshot is in use."""
    descriptor = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _remove_tree(trees: Path, name: str) -> bool:
    """Remove a tree unless it is locked; return whether it was removed."""
    descriptor = os.open(trees / name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        removed = trees / f".removed-{name}"
        (trees / name).rename(removed)
        import shutil  # imported here, since it takes time

        shutil.rmtree(removed, ignore_errors=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
