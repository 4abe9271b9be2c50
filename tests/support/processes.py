"""Processes that tests start: find them by a mark in their environment, wait for them, and send them signals."""

from __future__ import annotations

import ctypes
import os
import select
import time
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)

#: Environment variable that all processes started by the tests inherit. Its value differs for each session.
MARK = "SKYRL_MODAL_TEST_SESSION"


def marked_processes(value: str) -> dict[int, str]:
    """Return the running processes that have the mark, as command lines by pid; without this process."""
    own_pid, found = os.getpid(), {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == own_pid:
            continue
        try:
            environment = Path(entry.path, "environ").read_bytes()
            command = Path(entry.path, "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if f"{MARK}={value}".encode() in environment.split(b"\0"):
            found[int(entry.name)] = command
    return found


def wait_for_marked_processes(value: str, timeout: float) -> dict[int, str]:
    """Wait until no process with the mark is running. Return those that are left after the timeout."""
    deadline = time.monotonic() + timeout
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
    """Return the pids of local supervisors with a mark, by default this session's.

    Returns:
        Two lists: at 0 the pids of rank 0 whose caller reads its events, at 1 all others.
    """
    found: dict[int, list[int]] = {0: [], 1: []}
    for pid, command in marked_processes(value or os.environ[MARK]).items():
        arguments = command.split(" ")
        # bubblewrap and its shell have the same path at a later position of their arguments.
        if len(arguments) > 3 and arguments[3].endswith("container/__main__.py"):
            found[0 if "--events" in arguments else 1].append(pid)
    return found


def signal_other_thread(pid: int, number: int) -> None:
    """Send a signal to a thread of a process, other than its main thread, that does not block the signal."""
    for task in sorted(Path(f"/proc/{pid}/task").iterdir(), key=lambda path: int(path.name), reverse=True):
        blocked = next(line for line in (task / "status").read_text().splitlines() if line.startswith("SigBlk"))
        if int(task.name) == pid or int(blocked.split()[1], 16) >> (number - 1) & 1:
            continue
        if _LIBC.tgkill(pid, int(task.name), number):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return
    raise LookupError(f"process {pid} has no other thread that accepts signal {number}")
