"""The processes of a PID namespace, and the memory that they use."""

from __future__ import annotations

import os
from collections.abc import Sequence

from attrs import frozen

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@frozen
class NamespaceUsage:
    """What the processes of a namespace use.

    Attributes:
        processes: Their number.
        memory_bytes: Their resident memory together, and files in memory. Shared pages count for each process. 0 if
            there are more processes than are examined.
    """

    processes: int
    memory_bytes: int


def find_usage(init: int, folders: Sequence[str], max_processes: int) -> NamespaceUsage | None:
    """Return what the processes of a namespace use; None if it does not exist any more.

    Its own /proc is read, which contains no other processes.

    Args:
        init: The process id of its first process.
        folders: Paths in the namespace of file systems in memory, whose content is counted.
        max_processes: The number of processes above which their memory is not examined.
    """
    root = f"/proc/{init}/root"
    try:
        processes = [name for name in os.listdir(f"{root}/proc") if name.isdecimal()]
    except OSError:
        return None
    if len(processes) > max_processes:
        return NamespaceUsage(len(processes), 0)
    pages = sum(_resident_pages(f"{root}/proc/{name}/statm") for name in processes)
    files = sum(_used_bytes(f"{root}{path}") for path in folders)
    return NamespaceUsage(len(processes), pages * _PAGE_BYTES + files)


def _resident_pages(path: str) -> int:
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read().split()[1])
    except (OSError, IndexError, ValueError):  # it has exited
        return 0


def _used_bytes(path: str) -> int:
    try:
        status = os.statvfs(path)
    except OSError:  # the processes have exited
        return 0
    return (status.f_blocks - status.f_bfree) * status.f_frsize
