"""Folders that a process locks while it uses them, so that others can remove those of a process that was killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def locked_temporary_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Create a folder that ``abandoned_folder`` considers in use until the end of the ``with`` block.

    The caller removes the folder. On a file system without locks the folder is used without one: ``abandoned_folder``
    cannot lock it there either.

    Args:
        parent: The folder to create it in.
        prefix: The beginning of its name. The end is random.
    """
    while True:
        folder = parent / f"{prefix}{os.urandom(8).hex()}"  # tempfile is not used, since its import takes time
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            continue
        descriptor = lock_folder(folder)
        if descriptor is None:
            continue  # another process removed it before it was locked
        try:
            yield folder
            return
        finally:
            os.close(descriptor)


def lock_folder(folder: Path) -> int | None:
    """Lock a folder, so that ``abandoned_folder`` considers it in use.

    On a file system without locks it is not locked; ``abandoned_folder`` cannot lock it there either.

    Returns:
        A descriptor. The lock is released when this descriptor and its duplicates in other processes are closed. None
        if the folder does not exist any more.

    Raises:
        OSError: It cannot be opened.
    """
    try:
        descriptor = os.open(folder, _OPEN_FOLDER)
    except FileNotFoundError:
        return None
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        if _is_folder_at(descriptor, folder):
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


@contextlib.contextmanager
def abandoned_folder(folder: Path) -> Iterator[bool]:
    """Lock a folder that no process has locked.

    The lock is held until the end of the ``with`` block, in which the folder may be removed.

    Yields:
        Whether the folder could be locked. False if a process uses it, it does not exist any more, or it belongs to
        another user.
    """
    try:
        descriptor = os.open(folder, _OPEN_FOLDER)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield _is_folder_at(descriptor, folder) and os.fstat(descriptor).st_uid == os.geteuid()
    finally:
        os.close(descriptor)


def _is_folder_at(descriptor: int, path: Path) -> bool:
    """Return whether an open folder is still at its path, and was not removed between its creation and its lock."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def remove_tree(folder: Path, deadline: float | None = None) -> bool:
    """Remove a folder of this user, including parts whose permissions were removed by a run or by an overlay.

    Args:
        folder: The folder.
        deadline: Time of ``time.monotonic`` at which to stop; None for no limit. A further call continues.

    Returns:
        Whether the folder does not exist any more.
    """
    try:
        _make_folders_accessible(folder, deadline)
        # Relative to open descriptors: a folder that another process replaces by a link is not followed.
        for _, folders, files, descriptor in os.fwalk(folder, topdown=False):
            if _has_passed(deadline):
                return False
            for name in files:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=descriptor)
            for name in folders:
                _remove_folder_or_link(name, descriptor)
    except (OSError, RecursionError):  # removed by another process meanwhile, or folders nested too deeply
        return not os.path.lexists(folder)
    with contextlib.suppress(OSError):
        os.rmdir(folder)
    return not os.path.lexists(folder)


def _make_folders_accessible(folder: Path, deadline: float | None) -> None:
    for parent, folders, _ in os.walk(folder):
        if _has_passed(deadline):
            return
        for name in folders:
            path = os.path.join(parent, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISDIR(mode) and mode & 0o700 != 0o700:
                os.chmod(path, 0o700)


def _has_passed(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


def _remove_folder_or_link(name: str, parent: int) -> None:
    with contextlib.suppress(OSError):
        try:
            os.rmdir(name, dir_fd=parent)
        except NotADirectoryError:
            os.unlink(name, dir_fd=parent)
