"""The contents that snapshots are made of: one file for each content and mode, linked into snapshots."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from attrs import frozen

if sys.platform == "linux":
    import fcntl

    # From linux/fs.h: lets two files share their blocks until one of them is written.
    _FICLONE = 0x40049409

LINK = stat.S_IFLNK
_SMALL = 1 << 20
_CHUNK = 1 << 20
_ATTEMPTS = 3


def digest_of(entries: Iterable[tuple[str, int, bytes]]) -> str:
    """SHA-256, in hex, over path, permissions and content's SHA-256 of each file, in the order of the paths."""
    text = b"".join(b"%o %b %b\0" % (mode, sha, os.fsencode(path)) for path, mode, sha in entries)
    return hashlib.sha256(text).hexdigest()


def kept_mode(mode: int) -> int:
    """What of a file's mode a snapshot keeps: whether it is a link, and a file's permissions."""
    return LINK if stat.S_ISLNK(mode) else stat.S_IFREG | mode & 0o777


def fingerprint(path: str) -> tuple[int, bytes]:
    """Kept mode and SHA-256 of the content of a file, or of where a link leads.

    Raises:
        OSError: It is gone or cannot be read.
    """
    mode = os.lstat(path).st_mode
    if stat.S_ISLNK(mode):
        return LINK, hashlib.sha256(os.fsencode(os.readlink(path))).digest()
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        return kept_mode(mode), hashlib.file_digest(file, "sha256").digest()


class Unusable(Exception):
    """A file that cannot be copied; the text says why and what to do."""


@frozen
class Content:
    """What was read.

    Attributes:
        sha: SHA-256 of the content.
        status: The file's, from before it was read.
        added: The bytes by which the pool grew.
        steady: Whether the file was the same before and after.
    """

    sha: bytes
    status: os.stat_result
    added: int
    steady: bool


@frozen
class Blobs:
    """A pool of contents.

    Attributes:
        folder: Where they lie.
    """

    folder: Path

    def path(self, sha: bytes, mode: int) -> str:
        """Where a content with these permissions lies. The permissions belong to it, since links share them."""
        name = sha.hex()
        return f"{self.folder}/{name[:1]}/{name[1:]}-{mode & 0o777:o}"

    def add(self, path: str) -> Content:
        """Puts a file's content in the pool.

        A file that changes while it is read is read again, some times; what is stored is one reading in any case.

        Raises:
            Unusable: It is no regular file (any more), or cannot be read.
        """
        for attempt in range(_ATTEMPTS):
            try:
                content = self._add(path, final=attempt == _ATTEMPTS - 1)
            except FileNotFoundError:
                raise Unusable("vanished before it was copied") from None
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENXIO):
                    raise Unusable("is not a file any more") from error
                if error.errno in (errno.EACCES, errno.EPERM, errno.EIO):
                    raise Unusable(
                        f"cannot be read ({error.strerror}): `chmod u+r` it, or name it in exclude"
                    ) from error
                raise
            if content is not None:
                return content
        raise AssertionError("the last attempt gives a content")

    def _add(self, path: str, final: bool) -> Content | None:
        # Neither a link nor a pipe that has taken the file's place may lead elsewhere or block.
        source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            before = os.fstat(source)
            if not stat.S_ISREG(before.st_mode):
                raise Unusable("is not a file any more")
            if before.st_size <= _SMALL:
                data = _all(source)
                sha = hashlib.sha256(data).digest()
                staged = None
            else:
                staged, sha = self._copied(source)
            after = os.fstat(source)
        finally:
            os.close(source)
        steady = (before.st_size, before.st_mtime_ns, before.st_ctime_ns) == (
            after.st_size,
            after.st_mtime_ns,
            after.st_ctime_ns,
        )
        if not steady and not final:
            if staged is not None:
                os.unlink(staged)
            return None
        place = self.path(sha, before.st_mode)
        size = len(data) if staged is None else os.stat(staged).st_size
        if _has_size(place, size):
            if staged is not None:
                os.unlink(staged)
            return Content(sha, before, 0, steady)
        if staged is None:
            handle, staged = tempfile.mkstemp(dir=self.folder)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
        os.chmod(staged, before.st_mode & 0o777)
        os.utime(staged, ns=(before.st_atime_ns, before.st_mtime_ns))
        try:
            os.replace(staged, place)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(place), exist_ok=True)
            os.replace(staged, place)
        return Content(sha, before, size, steady)

    def _copied(self, source: int) -> tuple[str, bytes]:
        """A copy of a large file, with blocks shared where the file system can, and its SHA-256."""
        handle, staged = tempfile.mkstemp(dir=self.folder)
        with os.fdopen(handle, "r+b", buffering=0) as target:
            digest = hashlib.sha256()
            cloned = _cloned(source, target.fileno())
            # What was cloned cannot change any more, so it is the clone that is hashed.
            read = target.fileno() if cloned else source
            while chunk := os.read(read, _CHUNK):
                digest.update(chunk)
                if not cloned:
                    _write_all(target.fileno(), chunk)
        return staged, digest.digest()

    def unlinked(self) -> tuple[int, list[tuple[str, int]]]:
        """The bytes of the whole pool, and each content that no snapshot uses, with its size."""
        total, idle = 0, []
        for folder in os.scandir(self.folder):
            if not folder.is_dir(follow_symlinks=False):
                # A file that was being written when its process ended.
                idle.append((folder.path, 0))
                continue
            for entry in os.scandir(folder.path):
                status = entry.stat(follow_symlinks=False)
                total += status.st_size
                if status.st_nlink == 1:
                    idle.append((entry.path, status.st_size))
        return total, idle


def _all(source: int) -> bytes:
    chunks = []
    while chunk := os.read(source, _CHUNK):
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _write_all(target: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(target, view) :]


def _has_size(path: str, size: int) -> bool:
    """Whether a content is there in full; after a power cut it may be there and empty."""
    try:
        return os.stat(path).st_size == size
    except FileNotFoundError:
        return False


def _cloned(source: int, target: int) -> bool:
    if sys.platform != "linux":
        return False
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        # The file system cannot, or they are two.
        return False
    return True
