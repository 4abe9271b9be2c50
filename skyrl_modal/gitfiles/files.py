"""Reading of files that an untrusted checkout may contain: regular files of bounded size only."""

from __future__ import annotations

import errno
import os
import stat

_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)

#: Files of a few lines, such as HEAD. git refuses a ``.git`` file of more than 1 MiB (setup.c, read_gitfile_gently).
MAX_SMALL_FILE_BYTES = 1 << 20
#: Other files, unless the caller states a limit.
MAX_FILE_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 16


class UnsuitableFileError(OSError):
    """The file is not read, because it is not a regular file, or is too large. ``strerror`` states which."""


def read_regular_file(
    path: str | bytes | os.PathLike[str], *, follow_link: bool = True, max_bytes: int = MAX_FILE_BYTES
) -> bytes:
    """Return the content of a regular file of bounded size. The null device counts as an empty file.

    Reading a named pipe would block, and reading a device may never end.

    Args:
        path: The file.
        follow_link: Whether to read the target of a symbolic link; otherwise a link is an error.
        max_bytes: The size above which the file is not read.

    Raises:
        UnsuitableFileError: The file is a named pipe, a socket or a device, or is too large.
        OSError: The file is absent, is a folder, or cannot be read.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | (0 if follow_link else _NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except ValueError:
        # A name with a NUL, which a configuration file can contain.
        raise UnsuitableFileError(errno.EINVAL, "its name contains a NUL", os.fspath(path)) from None
    except OSError as error:
        # Sockets, and devices without a driver.
        if error.errno in (errno.ENXIO, errno.ENODEV, errno.EOPNOTSUPP):
            raise UnsuitableFileError(error.errno, "not a regular file", os.fspath(path)) from error
        raise
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if not stat.S_ISREG(status.st_mode):
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == os.stat(os.devnull).st_rdev:
                return b""
            raise UnsuitableFileError(errno.EINVAL, f"{_kind(status.st_mode)}, not a regular file", os.fspath(path))
        content = b""
        if status.st_size <= max_bytes:
            # A file of /proc has the size 0, and any other may grow.
            chunk = status.st_size + 1
            while len(content) <= max_bytes and (data := os.read(descriptor, min(chunk, max_bytes + 1 - len(content)))):
                content = content + data if content else data
                chunk = max(_CHUNK_BYTES, len(content))
        if max(status.st_size, len(content)) > max_bytes:
            raise UnsuitableFileError(errno.EFBIG, f"larger than {max_bytes:,} bytes", os.fspath(path))
        return content
    finally:
        os.close(descriptor)


def find_unsuitable(path: str | os.PathLike[str], max_bytes: int = MAX_FILE_BYTES) -> str:
    """Return why ``read_regular_file`` would refuse an existing file; empty if it would not, or there is no file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return ""
    if stat.S_ISREG(status.st_mode):
        return f"larger than {max_bytes:,} bytes" if status.st_size > max_bytes else ""
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == os.stat(os.devnull).st_rdev:
        return ""
    return "" if stat.S_ISDIR(status.st_mode) else f"{_kind(status.st_mode)}, not a regular file"


def _kind(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "a named pipe"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"
