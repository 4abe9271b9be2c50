"""A cache of archives of snapshots, in the folder of their store.

An archive describes the files of one snapshot. It refers to a pack, which has the contents that several archives share.
A process that sends an archive creates links to the files in a folder that it locks, so that removals from the cache do
not affect it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from skyrl_modal.dataclass import dataclass
from skyrl_modal.snapshots.content_pool import UNFINISHED_PREFIX, removed_on_failure
from skyrl_modal.snapshots.snapshot import SharedLock
from skyrl_modal.user_folders import make_private_folder

#: The name of the folder of the archives in the folder of a store.
ARCHIVES_FOLDER = "archives"
#: The number of archives that are kept, and the number of packs.
MAX_ARCHIVES = 32
MAX_PACKS = 8
#: Size of all packs together, in bytes, above which only the most recently used one is kept.
MAX_PACK_BYTES = 2 << 30
_FOLDERS = ("trees", "packs", "indexes", "sending")


@dataclass(frozen=True, slots=True)
class ArchiveCache:
    """Archives and packs of the snapshots of a store. Several processes may use it at the same time.

    Args:
        store: The folder of the store.
    """

    store: Path

    @property
    def folder(self) -> Path:
        """The folder of the cache."""
        return self.store / ARCHIVES_FOLDER

    def create(self) -> None:
        """Create the folders of the cache, and remove what killed processes have left."""
        make_private_folder(self.folder)
        for name in _FOLDERS:
            make_private_folder(self.folder / name)
        with self._locked():
            self._remove_abandoned()

    def tree(self, digest: str) -> Path:
        """Return the path of the archive of a snapshot, which may not exist."""
        return self.folder / "trees" / digest

    def pack(self, sha256: str) -> Path:
        """Return the path of a pack, which may not exist."""
        return self.folder / "packs" / sha256

    def index(self, sha256: str) -> Path:
        """Return the path of the list of a pack's contents, which may not exist."""
        return self.folder / "indexes" / sha256

    def packs(self) -> list[str]:
        """Return the names of the packs, the most recently used first."""
        return [path.name for path in reversed(_by_time_of_use(self.folder / "packs"))]

    @contextlib.contextmanager
    def new_file(self, kind: str) -> Iterator[tuple[BinaryIO, list[Path]]]:
        """Write a file of the cache. It is stored when the block ends, at the path that the block adds to the list.

        Args:
            kind: The folder of the file.
        """
        import tempfile  # imported here, since it takes time

        handle, staged = tempfile.mkstemp(prefix=UNFINISHED_PREFIX, dir=self.folder / kind)
        target: list[Path] = []
        with removed_on_failure(staged):
            with os.fdopen(handle, "wb") as file:
                yield file, target
                file.flush()
                # After a power failure, the file must not exist with another content: its name states its content.
                os.fsync(file.fileno())
            os.replace(staged, target[0])

    def start_sending(self) -> Sending:
        """Return a new folder for the files that are sent."""
        with self._locked():
            import tempfile  # imported here, since it takes time

            folder = Path(tempfile.mkdtemp(dir=self.folder / "sending"))
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        return Sending(folder, SharedLock(descriptor))

    def evict(self) -> None:
        """Remove the least recently used archives and packs above the limits."""
        with self._locked():
            for path in _by_time_of_use(self.folder / "trees")[:-MAX_ARCHIVES]:
                path.unlink(missing_ok=True)
            packs = _by_time_of_use(self.folder / "packs")
            total = sum(path.stat().st_size for path in packs)
            while len(packs) > MAX_PACKS or (len(packs) > 1 and total > MAX_PACK_BYTES):
                path = packs.pop(0)
                total -= path.stat().st_size
                self._remove_pack(path)

    def remove_unused(self, used_before: float, *, dry_run: bool) -> int:
        """Remove archives and packs, and return the number of bytes that they have.

        Args:
            used_before: Time in seconds since the epoch; what was used later is kept.
            dry_run: Whether to remove nothing.
        """
        if not all((self.folder / name).is_dir() for name in _FOLDERS):
            return 0
        freed = 0
        with self._locked():
            if not dry_run:
                self._remove_abandoned()
            for kind in ("trees", "packs"):
                for path in _by_time_of_use(self.folder / kind):
                    status = path.stat()
                    if status.st_atime >= used_before:
                        continue
                    freed += status.st_size
                    if not dry_run and kind == "packs":
                        self._remove_pack(path)
                    elif not dry_run:
                        path.unlink()
        return freed

    def _remove_pack(self, path: Path) -> None:
        path.unlink()
        self.index(path.name).unlink(missing_ok=True)

    def _remove_abandoned(self) -> None:
        """Remove the folders of files that killed processes sent, and unfinished files."""
        for folder in (self.folder / "sending").iterdir():
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                import shutil  # imported here, since it takes time

                shutil.rmtree(folder, ignore_errors=True)
            except BlockingIOError:
                pass
            finally:
                os.close(descriptor)
        for name in _FOLDERS[:3]:
            for path in (self.folder / name).glob(f"{UNFINISHED_PREFIX}*"):
                # Nothing takes an hour to write. There is no lock for each of these files.
                with contextlib.suppress(FileNotFoundError):
                    if path.stat().st_mtime < time.time() - 3600:
                        path.unlink()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock the cache against other removals, and against new folders of files that are sent."""
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


class Sending:
    """A folder of links to the files that are sent. It is removed when it is released, or with the process.

    Args:
        path: The folder.
        lock: The lock that prevents its removal by other processes.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path, lock: SharedLock) -> None:
        self.path = path
        self._lock = lock

    def add(self, source: Path, name: str) -> None:
        """Add a file under a name.

        Raises:
            FileNotFoundError: The file was removed from the cache.
        """
        import shutil  # imported here, since it takes time

        target = self.path / name
        try:
            # Modal's client refuses a file that changes after the start of the upload (1.6.4). A time in the future,
            # for example of an unpacked file, looks like such a change.
            if source.stat().st_mtime < time.time():
                os.link(source, target)
                return
        except FileNotFoundError:
            raise
        except FileExistsError:
            return
        except OSError:
            pass  # too many links, or a file system without links
        shutil.copyfile(source, target)

    def release(self) -> None:
        """Remove the folder. Further calls do nothing."""
        if self._lock.close.alive:
            import shutil  # imported here, since it takes time

            shutil.rmtree(self.path, ignore_errors=True)
            self._lock.close()


def mark_used(path: Path) -> None:
    """Record that a file is used now. Its time of modification remains: Modal's client would refuse a changed file."""
    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def _by_time_of_use(folder: Path) -> list[Path]:
    """Return the finished files of a folder, the least recently used first."""
    found = []
    for path in folder.iterdir():
        if not path.name.startswith(UNFINISHED_PREFIX):
            with contextlib.suppress(FileNotFoundError):  # another process has removed it
                found.append((path.stat().st_atime, path))
    return [path for _, path in sorted(found)]
