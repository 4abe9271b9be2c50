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
        memory_bytes: Their resident memory together, and files in memory. Shared pages count for each process.
    """

    processes: int
    memory_bytes: int


def find_usage(init: int, folders: Sequence[str] = ()) -> NamespaceUsage | None:
    """Return what the processes of a namespace use; None if it does not exist any more.

    Args:
        init: The process id of its first process.
        folders: Paths in the namespace of file systems in memory, whose content is counted.
    """
    try:
        namespace = os.readlink(f"/proc/{init}/ns/pid")
    except OSError:
        return None
    count, pages = 0, 0
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            if os.readlink(f"/proc/{name}/ns/pid") == namespace:
                count += 1
                with open(f"/proc/{name}/statm", encoding="ascii") as file:
                    pages += int(file.read().split()[1])
        except (OSError, IndexError, ValueError):
            continue  # it has exited
    return NamespaceUsage(count, pages * _PAGE_BYTES + sum(_used_bytes(f"/proc/{init}/root{path}") for path in folders))


def _used_bytes(path: str) -> int:
    try:
        status = os.statvfs(path)
    except OSError:  # the processes have exited
        return 0
    return (status.f_blocks - status.f_bfree) * status.f_frsize
