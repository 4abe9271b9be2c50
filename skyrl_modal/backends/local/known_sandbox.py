"""A record of the sandbox that has worked on this machine, so that the next process need not try it again.

A try starts bubblewrap, and its end waits until the kernel has written the file system of the overlay to the disk. The
record is used only while everything is as it was that decides whether bubblewrap works: the start of the machine, the
program, the user and its privileges, the namespaces that contain this process, the limits of the kernel, and the file
system.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from skyrl_modal.errors import StorageError
from skyrl_modal.user_folders import cache_folder

if TYPE_CHECKING:
    from skyrl_modal.gitfiles.result_cache import ResultCache

#: The name of the record begins with this. To be changed with the meaning of a record.
_FORMAT = "sandbox 1"
#: Files of the kernel whose content decides whether this process may create namespaces. ``attr/current`` is the profile
#: of AppArmor, or the context of SELinux.
_SETTINGS = (
    "/proc/sys/kernel/random/boot_id",
    "/proc/sys/kernel/unprivileged_userns_clone",
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
    "/proc/sys/user/max_user_namespaces",
    "/proc/sys/user/max_mnt_namespaces",
    "/proc/sys/user/max_pid_namespaces",
    "/proc/self/attr/current",
)
#: The beginnings of the lines of /proc/self/status about users, privileges and system call filters.
_STATUS_LINES = ("Uid:", "Gid:", "Groups:", "CapEff:", "CapBnd:", "NoNewPrivs:", "Seccomp:")
_NAMESPACES = ("user", "mnt", "pid")


def has_worked(binary: str, options: tuple[str, ...], scratch_root: Path) -> bool:
    """Return whether a bubblewrap has worked with overlays below a folder, and nothing has changed since then.

    Args:
        binary: Its path.
        options: Its options.
        scratch_root: The folder.
    """
    try:
        return _cache().load(_name(scratch_root)) == _facts(binary, options, scratch_root)
    except (OSError, StorageError):
        return False


def record_success(binary: str, options: tuple[str, ...], scratch_root: Path) -> None:
    """Record that a bubblewrap has worked with overlays below a folder."""
    with suppress(OSError, StorageError):
        _cache().save(_name(scratch_root), _facts(binary, options, scratch_root))


def forget(scratch_root: Path) -> None:
    """Remove the record of a folder."""
    with suppress(OSError, StorageError):
        _cache().save(_name(scratch_root), b"")


def _cache() -> ResultCache:
    from skyrl_modal.gitfiles.result_cache import ResultCache  # imported here: only the start of a run needs it

    return ResultCache(cache_folder() / "results")


def _name(scratch_root: Path) -> str:
    return f"{_FORMAT} of {scratch_root}"


def _facts(binary: str, options: tuple[str, ...], scratch_root: Path) -> bytes:
    program, folder = os.stat(binary), os.stat(scratch_root)
    facts = [
        [binary, *options],
        [program.st_dev, program.st_ino, program.st_size, program.st_mode, program.st_mtime_ns, program.st_ctime_ns],
        [folder.st_dev, folder.st_ino],
        [_content(path) for path in _SETTINGS],
        [line for line in _content("/proc/self/status").splitlines() if line.startswith(_STATUS_LINES)],
        list(_namespaces()),
    ]
    return json.dumps(facts).encode()


def _content(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _namespaces() -> Iterator[str]:
    for name in _NAMESPACES:
        try:
            yield os.readlink(f"/proc/self/ns/{name}")
        except OSError:
            yield ""
