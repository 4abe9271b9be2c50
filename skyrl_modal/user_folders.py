"""This package's folders of the user: data, state and cache. No other user may enter them, whatever the umask."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from pathlib import Path

from skyrl_modal.errors import SpecError, StorageError

_NAME = "skyrl_modal"
#: Also the mode that the XDG Base Directory Specification requires for folders of the user that do not exist yet.
_MODE = 0o700


def data_folder() -> Path:
    """Return the folder with the volumes of the local backend. It may not exist.

    Raises:
        StorageError: This user has no home folder. So do the other functions of this module.
    """
    return _find_folder("data", "XDG_DATA_HOME", ".local/share")


def state_folder() -> Path:
    """Return the folder with the records of this machine. It may not exist."""
    return _find_folder("state", "XDG_STATE_HOME", ".local/state")


def cache_folder() -> Path:
    """Return the folder with what can be created again. It may not exist."""
    return _find_folder("cache", "XDG_CACHE_HOME", ".cache")


def config_folder() -> Path:
    """Return the folder with the user's configuration. It may not exist."""
    return _find_folder("config", "XDG_CONFIG_HOME", ".config")


def _find_folder(kind: str, variable: str, default: str) -> Path:
    """Return the folder of a kind, as platformdirs does: on Linux by the variable, or below the home folder."""
    if sys.platform == "linux":
        base, home = os.environ.get(variable, ""), os.environ.get("HOME", "")
        if os.path.isabs(base):
            return Path(base, _NAME)
        if os.path.isabs(home):
            return Path(home, default, _NAME)
    import platformdirs  # imported here, since it takes time

    reason = "this user has no home folder. Set HOME, or XDG_DATA_HOME, XDG_STATE_HOME and XDG_CACHE_HOME"
    try:
        folder: Path = getattr(platformdirs, f"user_{kind}_path")(_NAME)
    except RuntimeError as error:
        raise StorageError("~", reason) from error
    if not folder.is_absolute():  # earlier versions of platformdirs return a folder named "~"
        raise StorageError("~", reason)
    return folder


def create_user_folder(folder: Path) -> Path:
    """Create a folder that only this user may enter, and return it.

    An existing folder of this user that other users may enter is corrected. So are the folders above it, up to the
    user's folder of this package. A folder that a symbolic link leads to keeps its permissions, except for the user's
    folder of this package: a volume may be a link to a folder that several users share.

    Args:
        folder: The folder: one of those that the functions of this module return, or one below.

    Raises:
        StorageError: It cannot be created, or belongs to another user.

    Example:
        >>> create_user_folder(cache_folder() / "scratch").stat().st_mode & 0o777 == 0o700  # doctest: +SKIP
        True
    """
    top = next((top for top in (data_folder(), state_folder(), cache_folder()) if folder.is_relative_to(top)), folder)
    try:
        make_private_folder(top, follow_links=True)
        path = top
        for name in folder.relative_to(top).parts:
            path /= name
            make_private_folder(path)
    except OSError as error:
        raise StorageError(str(folder), f"the folder cannot be created: {error.strerror}") from error
    return folder


def make_private_folder(folder: Path, *, follow_links: bool = False) -> None:
    """Create a folder that only this user may enter. An existing one of this user is corrected.

    Args:
        folder: The folder. Those above it that do not exist are created too, with the same permissions.
        follow_links: Whether to correct a folder that a symbolic link leads to.

    Raises:
        StorageError: It belongs to another user, who could replace what is in it.
        OSError: It cannot be created.
    """
    if not folder.is_dir():
        _create(folder)
    if os.name != "posix":
        return
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follow_links else os.O_NOFOLLOW)
    try:
        descriptor = os.open(folder, flags)
    except OSError as error:
        # Linux reports a link as ENOTDIR if O_DIRECTORY is set too, macOS as ELOOP.
        if error.errno in (errno.ELOOP, errno.ENOTDIR) and folder.is_symlink() and folder.is_dir():
            return
        raise
    try:
        status = os.fstat(descriptor)
        _check_owner(folder, status.st_uid)
        if status.st_uid == os.geteuid() and status.st_mode & 0o077:
            with contextlib.suppress(OSError):  # a file system without permissions, such as FAT, or a read-only one
                os.fchmod(descriptor, stat.S_IMODE(status.st_mode) & ~0o077)
    finally:
        os.close(descriptor)


def _create(folder: Path) -> None:
    for parent in reversed([folder, *folder.parents]):
        if not parent.is_dir():
            try:
                parent.mkdir(mode=_MODE)
            except FileExistsError:
                if not parent.is_dir():  # no other process has created it: it is a file
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(parent)) from None
            else:
                if os.name == "posix":
                    parent.chmod(_MODE)  # the umask may exclude the user's own permissions


def _check_owner(folder: Path, owner: int) -> None:
    """Raise an error for a folder of an ordinary user who is not this one.

    root may use the folders of other users: in a container, a folder of the host is often mounted that belongs to the
    host's user. The owner ``root`` can change every folder anyway.
    """
    user = os.geteuid()
    if user == 0 or owner in (user, 0):
        return
    raise StorageError(
        str(folder),
        f"the folder belongs to another user (with the id {owner}), who could replace its files. Remove it, or set "
        "XDG_DATA_HOME, XDG_STATE_HOME and XDG_CACHE_HOME to folders of your own",
    )


def local_path(local: str | Path) -> Path:
    """Return a path of this machine that a caller has passed as ``local``, with its ``~`` replaced.

    Raises:
        SpecError: It is empty, or contains a null character.
    """
    text = os.fspath(local)
    if not text or "\0" in text:
        raise SpecError("local", local, "pass the path of a file or folder")
    return Path(text).expanduser()
