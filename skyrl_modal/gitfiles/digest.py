"""Digests of files and of sets of files."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable

#: The normalized mode of a symbolic link.
LINK_MODE = stat.S_IFLNK


def tree_digest(entries: Iterable[tuple[str, int, bytes]]) -> str:
    """Return the SHA-256, in hex, of a set of files.

    Args:
        entries: Path, normalized mode and SHA-256 of the content of each file, in the order of the paths.
    """
    columns = list(entries)
    # One call encodes all paths, which contain no NUL.
    paths = os.fsencode("\0".join([path for path, _, _ in columns])).split(b"\0") if columns else []
    text = b"".join([b"%o %b %b\0" % (entry[1], entry[2], path) for entry, path in zip(columns, paths, strict=True)])
    return hashlib.sha256(text).hexdigest()


def normalized_mode(mode: int) -> int:
    """Return the part of a file mode that a snapshot preserves: the kind (file or link) and a file's permissions."""
    return LINK_MODE if stat.S_ISLNK(mode) else stat.S_IFREG | mode & 0o777


def link_digest(target: str) -> bytes:
    """Return the SHA-256 of a symbolic link, which is the one of its target's path."""
    return hashlib.sha256(os.fsencode(target)).digest()


def file_digest(path: str) -> tuple[int, bytes]:
    """Return the normalized mode of a file, and the SHA-256 of its content or of its link target.

    Raises:
        OSError: The file was removed or cannot be read.
    """
    mode = os.lstat(path).st_mode
    if stat.S_ISLNK(mode):
        return LINK_MODE, link_digest(os.readlink(path))
    # O_NONBLOCK: a named pipe that has replaced the file must not block the call.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        with open(descriptor, "rb", closefd=False) as file:
            return normalized_mode(mode), hashlib.file_digest(file, "sha256").digest()
    finally:
        os.close(descriptor)
