"""Reading of files that an untrusted checkout may contain."""

from __future__ import annotations

import errno
import os
import stat

_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)


def read_regular_file(path: str | bytes | os.PathLike[str], *, follow_link: bool = True) -> bytes:
    """Return the content of a file; for a named pipe, a device or a socket, return nothing.

    Reading a named pipe would block, and reading a device may never end.

    Args:
        path: The file.
        follow_link: Whether to read the target of a symbolic link; otherwise a link is an error.

    Raises:
        OSError: The file is absent, is a folder, or cannot be read.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow_link else _NOFOLLOW)
    descriptor = os.open(path, flags)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if not stat.S_ISREG(mode):
            return b""
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)
