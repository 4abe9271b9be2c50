"""The processes of a PID namespace, and the memory that they use."""

from __future__ import annotations

import os

from attrs import frozen

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@frozen
class NamespaceUsage:
    """What the processes of a namespace use.

    Attributes:
        processes: Their number.
        memory_bytes: Their resident memory together. Shared pages count for each process.
    """

    processes: int
    memory_bytes: int


def find_usage(init: int) -> NamespaceUsage | None:
    """Return what the processes of a namespace use; None if it does not exist any more.

    Args:
        init: The process id of its first process.
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
    return NamespaceUsage(count, pages * _PAGE_BYTES)
