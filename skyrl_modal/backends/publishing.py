"""The last step of a transfer: complete files and folders are written to the disk, and moved to their places."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from skyrl_modal.backends.storage import check_no_special_file, file_conflict, folder_conflict, is_folder

#: Codes of ``rename`` for a target that is a folder with entries, on Linux and macOS, and on Solaris and others.
_NOT_EMPTY = (errno.ENOTEMPTY, errno.EEXIST)


def flush_tree(item: Path) -> None:
    """Write a file, or a folder with all of its files, to the disk.

    All files are written before the first one is flushed, so that the system can write them together.
    """
    if not is_folder(item):
        _flush(item)
        return
    for parent, _, files in os.walk(item, topdown=False):
        for name in files:
            _flush(Path(parent, name))
        _flush(Path(parent))


def _flush(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return  # the mode of the copy denies reading; the system writes it within seconds
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link is in its folder, which is flushed
            return
        raise
    try:
        with contextlib.suppress(OSError):  # a file system without this operation for folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(item: Path, target: Path) -> None:
    """Move a complete file or folder to its place. A folder is merged into an existing one."""
    if not is_folder(item):
        _move_file(item, target)
    elif is_folder(target) or not _move_folder(item, target):
        _check_merge(item, target)
        _merge(item, target)
        _flush(target)
    _flush(target.parent)


def _move_file(source: Path, target: Path) -> None:
    """Move a file. An existing file or link is replaced."""
    if is_folder(target):
        raise file_conflict(target)
    os.replace(source, target)


def _move_folder(source: Path, target: Path) -> bool:
    """Move a folder. Return False if there is a folder with entries, into which it has to be merged."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno in _NOT_EMPTY:
            return False
        if error.errno == errno.ENOTDIR:
            raise folder_conflict(target) from error
        raise
    return True


def _check_merge(item: Path, target: Path) -> None:
    """Check that a folder can be merged into another one, before anything is changed."""
    for parent, folders, files in os.walk(item):
        place = target / os.path.relpath(parent, item)
        for name in list(folders):
            if os.path.islink(os.path.join(parent, name)):
                folders.remove(name)
                files.append(name)
            elif not os.path.lexists(place / name):
                folders.remove(name)
            elif not is_folder(place / name):
                raise folder_conflict(place / name)
        for name in files:
            check_no_special_file(place / name)
            if is_folder(place / name):
                raise file_conflict(place / name)


def _merge(item: Path, target: Path) -> None:
    """Move the content of a folder into another one."""
    for parent, folders, files in os.walk(item):
        place = target / os.path.relpath(parent, item)
        for name in list(folders):
            source = Path(parent, name)
            if source.is_symlink():
                folders.remove(name)
                files.append(name)
            elif _move_folder(source, place / name):
                folders.remove(name)
        for name in files:
            _move_file(Path(parent, name), place / name)
        _flush(place)
