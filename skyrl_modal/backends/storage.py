"""Kinds of files, and errors of the system, in transfers."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator
from pathlib import Path

from skyrl_modal.errors import SkyRLModalError, StorageError

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def special_kind(mode: int) -> str | None:
    """Return what an entry is that is no file, folder or link; None for a file, folder or link.

    Example:
        >>> special_kind(stat.S_IFIFO), special_kind(stat.S_IFREG)
        ('a named pipe', None)
    """
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
        return None
    return _KINDS.get(stat.S_IFMT(mode), "a special file")


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Convert errors of the system in a ``with`` block to StorageError. The path is used for an error that has none."""
    try:
        yield
    except SkyRLModalError:  # PathNotFound is also an OSError
        raise
    except OSError as error:
        raise StorageError(str(error.filename or path), error.strerror or str(error)) from error


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder, and not a link to one."""
    return path.is_dir() and not path.is_symlink()


def check_no_special_file(target: Path) -> None:
    """Raise an error for a device, a named pipe or a socket, or a link to one, which a file would replace."""
    try:
        kind = special_kind(target.stat().st_mode)
    except OSError:
        return
    if kind is not None:
        raise StorageError(str(target), f"it is {kind}, and a file would replace it. Use another path")


def folder_conflict(target: Path) -> StorageError:
    """Return the error about a file or link where a folder has to be."""
    kind = "a symbolic link, which is not followed" if target.is_symlink() else "not a folder"
    return StorageError(str(target), f"it is {kind}, and a folder has to be there. Remove it, or use another path")


def file_conflict(target: Path) -> StorageError:
    """Return the error about a folder where a file has to be."""
    return StorageError(str(target), "it is a folder, and a file would replace it. Remove it, or use another path")
