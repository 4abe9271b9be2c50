"""The processes that tests start: found by a mark in their environment, waited for, and sent signals."""

from __future__ import annotations

import ctypes
import os
import select
import time
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)

#: A variable that every process started by these tests inherits, with a value of this session's own.
MARK = "SKYRL_MODAL_TEST_SESSION"


def marked_processes(value: str) -> dict[int, str]:
    """Living processes, other than this one and those it was started by, that carry this session's mark."""
    me, found = os.getpid(), {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == me:
            continue
        try:
            environment = Path(entry.path, "environ").read_bytes()
            command = Path(entry.path, "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if f"{MARK}={value}".encode() in environment.split(b"\0"):
            found[int(entry.name)] = command
    return found


def wait_for_none(value: str, seconds: float) -> dict[int, str]:
    """Wait until no marked process lives; gives those that still do."""
    deadline = time.monotonic() + seconds
    while left := marked_processes(value):
        handles = []
        for pid in left:
            try:
                handles.append(os.pidfd_open(pid))
            except ProcessLookupError:
                continue
        poller = select.poll()
        for handle in handles:
            poller.register(handle, select.POLLIN)
        remaining = deadline - time.monotonic()
        if handles and remaining > 0:
            poller.poll(remaining * 1000)
        for handle in handles:
            os.close(handle)
        if remaining <= 0:
            return left
    return {}


def supervisors(value: str = "") -> dict[int, list[int]]:
    """The pids of supervisors with a mark (this session's): 0, of rank 0 where its caller follows it; 1, all others."""
    found: dict[int, list[int]] = {0: [], 1: []}
    for pid, command in marked_processes(value or os.environ[MARK]).items():
        words = command.split(" ")
        # Not bubblewrap and the shell around them, which have the same words further back.
        if len(words) > 3 and words[3].endswith("container/__main__.py"):
            found[0 if "--events" in words else 1].append(pid)
    return found


def to_another_thread(pid: int, number: int) -> None:
    """Send a signal to a thread of a process that is not its main one and does not block the signal."""
    for task in sorted(Path(f"/proc/{pid}/task").iterdir(), key=lambda path: int(path.name), reverse=True):
        blocked = next(line for line in (task / "status").read_text().splitlines() if line.startswith("SigBlk"))
        if int(task.name) == pid or int(blocked.split()[1], 16) >> (number - 1) & 1:
            continue
        if _LIBC.tgkill(pid, int(task.name), number):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return
    raise LookupError(f"process {pid} has no other thread that takes signal {number}")
