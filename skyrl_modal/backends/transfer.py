"""Transfers of files: a copy is written to a staging folder beside its target, and moved there when it is complete.

A transfer that is killed leaves its staging folder only, and nothing incomplete at the target. The next transfer of
this user, or ``skyrl-modal clean``, removes it: the user's state folder has a link to each staging folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from skyrl_modal.backends.temporary_folders import abandoned_folder, locked_temporary_folder, remove_tree
from skyrl_modal.errors import SkyRLModalError, StorageError
from skyrl_modal.user_folders import create_user_folder, state_folder

#: What the names of staging folders begin with.
STAGING_PREFIX = ".skyrl-modal-transfer-"

#: Limit for the removal of what killed transfers left, before a transfer begins.
_REMOVAL_SECONDS = 5.0
_CHUNK = 1 << 20
#: Codes of ``rename`` for a target that is a folder with entries, on Linux and macOS, and on Solaris and others.
_NOT_EMPTY = (errno.ENOTEMPTY, errno.EEXIST)

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
def staged_transfer(target: Path) -> Iterator[Path]:
    """Write a file or folder in one step.

    A new file or folder appears complete or not at all. If the target is an existing folder, the new content is merged
    into it: each file appears complete, and the files are moved there only after all of them are written. A symbolic
    link at the target is replaced by a file, and is never followed.

    Args:
        target: The path of the new file or folder. Parents that do not exist are created.

    Yields:
        The path to write the content to, which does not exist yet. At the end of the ``with`` block the content is
        moved to the target. After an exception it is removed.

    Raises:
        StorageError: The target cannot be written, or is a special file; or a link or file is where a folder has to be,
            or a folder where a file has to be. The target is unchanged.
    """
    _check_no_special_file(target)
    remove_abandoned_transfers(time.monotonic() + _REMOVAL_SECONDS)
    created: list[Path] = []
    try:
        with contextlib.ExitStack() as stack:
            with storage_errors(target):
                created += _create_folders(target.parent)
                # In the target itself if it is a folder: its parent may be on another file system, or not writable.
                parent = target if _is_folder(target) else target.parent
                _remove_abandoned_in(parent)
                staging = stack.enter_context(locked_temporary_folder(parent, STAGING_PREFIX))
                stack.callback(remove_tree, staging)
                stack.enter_context(_listed_transfer(staging))
            item = staging / "item"
            yield item
            with storage_errors(target):
                flush_tree(item)
                _publish(item, target)
    except BaseException:
        for folder in reversed(created):
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Convert errors of the system in a ``with`` block to StorageError. The path is used for an error that has none."""
    try:
        yield
    except SkyRLModalError:  # PathNotFound is also an OSError
        raise
    except OSError as error:
        raise StorageError(str(error.filename or path), error.strerror or str(error)) from error


def copy_file(source: Path, target: Path) -> None:
    """Copy a regular file to a new file, with its permissions and times.

    The copy has at most the size that the file had at the beginning: a log that is written meanwhile has no end.

    Raises:
        FileExistsError: There is something at the target.
        OSError: The source is not a regular file, or another error of the system.
    """
    # A link or a named pipe may have replaced the file; it must neither be followed nor block.
    descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as reader:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(source))
        with open(target, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as writer:
            remaining = status.st_size
            while remaining and (chunk := reader.read(min(_CHUNK, remaining))):
                writer.write(chunk)
                remaining -= len(chunk)
            writer.flush()
            os.fchmod(writer.fileno(), status.st_mode & 0o777)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def flush_tree(item: Path) -> None:
    """Write a file, or a folder with all of its files, to the disk.

    All files are written before the first one is flushed, so that the system can write them together.
    """
    if not _is_folder(item):
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


def _check_no_special_file(target: Path) -> None:
    """Raise an error for a device, a named pipe or a socket, or a link to one, which a file would replace."""
    try:
        kind = special_kind(target.stat().st_mode)
    except OSError:
        return
    if kind is not None:
        raise StorageError(str(target), f"it is {kind}, and a file would replace it")


def _create_folders(folder: Path) -> list[Path]:
    """Create a folder and its parents; return those that did not exist, outermost first."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    missing.reverse()
    for path in missing:
        path.mkdir(exist_ok=True)
    return missing


def _is_folder(path: Path) -> bool:
    """Return whether a path is a folder, and not a link to one."""
    return path.is_dir() and not path.is_symlink()


# -- moving the content to its place -----------------------------------------------------------------------------------


def _publish(item: Path, target: Path) -> None:
    """Move a complete file or folder to its place."""
    if not _is_folder(item):
        _move_file(item, target)
    elif _is_folder(target) or not _move_folder(item, target):
        _check_merge(item, target)
        _merge(item, target)
        _flush(target)
    _flush(target.parent)


def _move_file(source: Path, target: Path) -> None:
    """Move a file. An existing file or link is replaced."""
    if _is_folder(target):
        raise StorageError(str(target), "it is a folder, and a file would replace it")
    os.replace(source, target)


def _move_folder(source: Path, target: Path) -> bool:
    """Move a folder. Return False if there is a folder with entries, into which it has to be merged."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno in _NOT_EMPTY:
            return False
        if error.errno == errno.ENOTDIR:
            raise _folder_conflict(target) from error
        raise
    return True


def _folder_conflict(target: Path) -> StorageError:
    kind = "a symbolic link, which is not followed" if target.is_symlink() else "not a folder"
    return StorageError(str(target), f"it is {kind}, and a folder has to be there. Remove it, or use another path")


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
            elif not _is_folder(place / name):
                raise _folder_conflict(place / name)
        for name in files:
            _check_no_special_file(place / name)
            if _is_folder(place / name):
                raise StorageError(str(place / name), "it is a folder, and a file would replace it")


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


# -- staging folders of killed transfers -------------------------------------------------------------------------------


def _transfers_folder() -> Path:
    """Return the folder with a link to the staging folder of each active transfer."""
    return state_folder() / "transfers"


@contextlib.contextmanager
def _listed_transfer(staging: Path) -> Iterator[None]:
    """List a staging folder, so that ``abandoned_transfers`` finds it, until the end of the ``with`` block.

    If the state folder cannot be written, only a later transfer to the same folder finds it.
    """
    link = _transfers_folder() / f"{os.getpid()}-{staging.name.removeprefix(STAGING_PREFIX)}"
    with contextlib.suppress(OSError, StorageError):
        create_user_folder(link.parent)
        link.symlink_to(staging.absolute())
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            link.unlink(missing_ok=True)


def abandoned_transfers() -> Iterator[tuple[Path, Path]]:
    """Yield the link to, and the path of, each staging folder whose transfer was killed. It is locked meanwhile."""
    try:
        links = sorted(_transfers_folder().iterdir())
    except OSError:
        return
    for link in links:
        try:
            staging = Path(os.readlink(link))
        except OSError:
            continue  # the transfer has ended, or this is no link
        if not staging.is_absolute() or not staging.name.startswith(STAGING_PREFIX):
            continue
        if not os.path.lexists(staging):
            with contextlib.suppress(OSError):
                link.unlink(missing_ok=True)
            continue
        with abandoned_folder(staging) as is_abandoned:
            if is_abandoned:
                yield link, staging


def remove_abandoned_transfers(deadline: float | None = None) -> None:
    """Remove the staging folders of transfers that were killed.

    Args:
        deadline: Time of ``time.monotonic`` at which to stop; None for no limit.
    """
    for link, staging in abandoned_transfers():
        with contextlib.suppress(OSError):
            if remove_tree(staging, deadline):
                link.unlink(missing_ok=True)


def _remove_abandoned_in(parent: Path) -> None:
    """Remove this user's staging folders of killed transfers in a folder, also those that no link leads to."""
    with contextlib.suppress(OSError):
        for name in os.listdir(parent):
            if name.startswith(STAGING_PREFIX):
                with abandoned_folder(parent / name) as is_abandoned:
                    if is_abandoned:
                        remove_tree(parent / name)
