"""The contents of snapshots: one file for each content and mode, linked into the snapshots."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from skyrl_modal.dataclass import dataclass

if sys.platform == "linux":
    import fcntl

    # From linux/fs.h: two files share their blocks until one of them is written.
    _FICLONE = 0x40049409

#: A file up to this size is read into memory; a larger one is copied and hashed in chunks.
MAX_SMALL_FILE_BYTES = 1 << 20
_CHUNK = 1 << 20
_ATTEMPTS = 3
#: The beginning of the name of a file or folder that is being written. Its final name does not begin with a dot.
UNFINISHED_PREFIX = ".new-"


class FileNotCopied(Exception):
    """A file could not be copied. The message states why and the remedy."""


class StoredContent(NamedTuple):
    """A content that was read and stored.

    Attributes:
        sha: The SHA-256 of the content.
        status: The status of the file before it was read.
        added: The number of bytes by which the pool grew.
        unchanged_while_read: Whether the file had the same status after it was read.
    """

    sha: bytes
    status: os.stat_result
    added: int
    unchanged_while_read: bool


@dataclass(frozen=True, slots=True)
class ContentPool:
    """A pool of contents.

    Attributes:
        folder: The folder of the pool.
    """

    folder: Path

    def path(self, sha: bytes, mode: int) -> str:
        """Return the path of a content with these permissions, which all links to it share."""
        name = sha.hex()
        return f"{self.folder}/{name[:1]}/{name[1:]}-{mode & 0o777:o}"

    def create_folders(self) -> None:
        """Create the folders of the contents, which are otherwise created with their first content."""
        for digit in "0123456789abcdef":
            with contextlib.suppress(FileExistsError):
                os.mkdir(f"{self.folder}/{digit}", 0o700)

    def add(self, path: str) -> StoredContent:
        """Add the content of a file to the pool.

        A file that changes while it is read is read again, up to three times. The stored content is the one of a single
        reading in any case.

        Raises:
            FileNotCopied: The path is not a regular file, or cannot be read.
            OSError: The pool cannot be written to.
        """
        for attempt in range(_ATTEMPTS):
            content = self._add(path, is_last_attempt=attempt == _ATTEMPTS - 1)
            if content is not None:
                return content
        raise AssertionError("the last attempt returns a content")

    def _add(self, path: str, is_last_attempt: bool) -> StoredContent | None:
        try:
            # A link or a named pipe may have replaced the file; it must neither be followed nor block.
            source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            _raise_not_copied(path, error)
        staged, data = None, b""
        try:
            before = os.fstat(source)
            if not stat.S_ISREG(before.st_mode):
                raise FileNotCopied("is no longer a file")
            if before.st_size <= MAX_SMALL_FILE_BYTES:
                data = _read_all(source, before.st_size, path)
                sha = hashlib.sha256(data).digest()
            else:
                staged, sha = self._copy_large(source, path)
            after = os.fstat(source)
        finally:
            os.close(source)
        unchanged = _times_and_size(before) == _times_and_size(after)
        if not unchanged and not is_last_attempt:
            if staged is not None:
                os.unlink(staged)
            return None
        added = self._store(data, self.path(sha, before.st_mode), before, staged)
        return StoredContent(sha, before, added, unchanged)

    def _store(self, data: bytes, target: str, status: os.stat_result, staged: str | None) -> int:
        """Store a content, from memory or from a copy, unless it is stored; return by how much the pool grew."""
        size = len(data) if staged is None else os.stat(staged).st_size
        if staged is None and data and self._create(data, target, status):
            return size
        if _has_size(target, size):
            if staged is not None:
                os.unlink(staged)
            return 0
        self._publish(self._stage(data) if staged is None else staged, target, status)
        return size

    @staticmethod
    def _create(data: bytes, target: str, status: os.stat_result) -> bool:
        """Write a content at its place, which takes less time than a copy that is renamed; return False if one exists.

        The file has its permissions before it has its size: what a killed process leaves is either complete, or has
        another size and is replaced.
        """
        mode = status.st_mode & 0o777
        try:
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        except (FileExistsError, FileNotFoundError):
            return False
        try:
            with removed_on_failure(target):
                if os.fstat(descriptor).st_mode & 0o777 != mode:  # because of the umask
                    os.fchmod(descriptor, mode)
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
                os.utime(descriptor, ns=(status.st_atime_ns, status.st_mtime_ns))
        finally:
            os.close(descriptor)
        return True

    def _stage(self, data: bytes) -> str:
        import tempfile  # imported here, since it takes time

        handle, staged = tempfile.mkstemp(prefix=UNFINISHED_PREFIX, dir=self.folder)
        with removed_on_failure(staged), os.fdopen(handle, "wb") as file:
            file.write(data)
        return staged

    def _copy_large(self, source: int, path: str) -> tuple[str, bytes]:
        """Copy a large file, sharing its blocks if the file system can; return the path and the SHA-256 of the copy."""
        import tempfile  # imported here, since it takes time

        handle, staged = tempfile.mkstemp(prefix=UNFINISHED_PREFIX, dir=self.folder)
        with removed_on_failure(staged), os.fdopen(handle, "w+b") as target:
            digest = hashlib.sha256()
            cloned = _clone_blocks(source, target.fileno())
            # The clone can no longer change, so it is hashed and not the source.
            read_from = target.fileno() if cloned else source
            while chunk := _read(read_from, path):
                digest.update(chunk)
                if not cloned:
                    target.write(chunk)
        return staged, digest.digest()

    @staticmethod
    def _publish(staged: str, target: str, status: os.stat_result) -> None:
        """Move a finished copy to its place, with the permissions and times of the file."""
        try:
            os.chmod(staged, status.st_mode & 0o777)
            os.utime(staged, ns=(status.st_atime_ns, status.st_mtime_ns))
            try:
                os.replace(staged, target)
            except FileNotFoundError:
                # Only this folder: if the pool itself was removed, the error is raised.
                with contextlib.suppress(FileExistsError):
                    os.mkdir(os.path.dirname(target), 0o700)
                os.replace(staged, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(staged)
            raise

    def find_unused(self) -> tuple[int, list[tuple[str, int]]]:
        """Return the size of the pool, and path and size of each content that no snapshot uses."""
        total, unused = 0, []
        for folder in os.scandir(self.folder):
            if not folder.is_dir(follow_symlinks=False):
                continue
            for entry in os.scandir(folder.path):
                status = entry.stat(follow_symlinks=False)
                total += status.st_size
                if status.st_nlink == 1:
                    unused.append((entry.path, status.st_size))
        return total, unused

    def find_freed(self, trees: Sequence[Path]) -> tuple[list[tuple[str, int]], int]:
        """Return what is not needed any more without some snapshots.

        Args:
            trees: The snapshots.

        Returns:
            Path and size of each content that no other snapshot has, and the size of the pool.
        """
        links: Counter[int] = Counter()
        for tree in trees:
            for parent, _, files in os.walk(tree):
                links.update(os.lstat(os.path.join(parent, name)).st_ino for name in files)
        freed, total = [], 0
        for folder in os.scandir(self.folder):
            if folder.is_dir(follow_symlinks=False):
                for entry in os.scandir(folder.path):
                    # Not entry.inode(): some file systems have other numbers in their folders.
                    status = entry.stat(follow_symlinks=False)
                    total += status.st_size
                    if status.st_nlink - 1 <= links[status.st_ino]:
                        freed.append((entry.path, status.st_size))
        return freed, total

    def remove_unfinished(self) -> None:
        """Remove files that were not completely written. No other process may be writing to the pool."""
        for entry in list(os.scandir(self.folder)):
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)


@contextlib.contextmanager
def removed_on_failure(path: str) -> Iterator[None]:
    """Remove a file if the block fails, for example because the disk is full."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


def _raise_not_copied(path: str, error: OSError) -> NoReturn:
    """Raise FileNotCopied for an error of a file that is copied. Errors of the pool itself are not passed here."""
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        raise error  # not an error of this file
    if isinstance(error, FileNotFoundError):
        raise FileNotCopied("was removed before it was copied") from None
    if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENOTDIR):
        raise FileNotCopied("is no longer a file") from error
    raise FileNotCopied(f"cannot be read ({error.strerror}; run `chmod u+r {path}`, or name it in exclude)") from error


def _times_and_size(status: os.stat_result) -> tuple[int, int, int]:
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _read(source: int, path: str, size: int = _CHUNK) -> bytes:
    try:
        return os.read(source, size)
    except OSError as error:
        _raise_not_copied(path, error)


def _read_all(source: int, size: int, path: str) -> bytes:
    """Return the content of a file of this size. A later change of the size is noticed by the caller."""
    chunks = [_read(source, path, size + 1)]
    if len(chunks[0]) == size:
        return chunks[0]
    while chunk := _read(source, path):
        chunks.append(chunk)
    return b"".join(chunks)


def _has_size(path: str, size: int) -> bool:
    """Return whether a content is stored in full; after a power failure it may exist and be empty."""
    try:
        return os.stat(path).st_size == size
    except FileNotFoundError:
        return False


def _clone_blocks(source: int, target: int) -> bool:
    if sys.platform != "linux":
        return False
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        # The file system has no such operation, or the files are on two file systems.
        return False
    return True
