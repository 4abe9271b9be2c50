"""The processes below this one: find them, wait for them, and terminate them."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable

from skyrl_modal.dataclass import dataclass
from skyrl_modal.machine import open_pidfd

#: Option of prctl(2), from Linux's include/uapi/linux/prctl.h.
_PR_SET_CHILD_SUBREAPER = 36
#: Seconds to wait for killed processes before they are looked for again.
_KILL_INTERVAL = 5.0
#: Seconds between two looks at the process table on systems without pidfd_open.
_POLL_INTERVAL = 0.05


@dataclass(frozen=True, slots=True)
class _Process:
    parent: int
    is_zombie: bool


class ProcessScope:
    """All processes that were started below this process after the scope was created.

    Orphans are adopted by this process instead of init (Linux), so that they can be found and terminated.
    """

    def __init__(self) -> None:
        become_subreaper()
        self._earlier = descendants(os.getpid())

    def processes(self) -> set[int]:
        """Return the living processes of the scope."""
        return descendants(os.getpid()) - self._earlier

    def terminate(self) -> set[int]:
        """Kill all processes of the scope. Return those that this user may not signal."""
        return terminate_all(self.processes, grace=0)


def become_subreaper() -> None:
    """Make orphans below this process children of it instead of init's (Linux)."""
    if sys.platform == "linux" and os.getpid() != 1:
        import ctypes  # imported here: the kernel gives orphans to process 1 anyway

        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _process_table() -> dict[int, _Process]:
    """Return every visible process by its id."""
    return _read_proc() if os.path.exists("/proc/self/stat") else _read_ps()


def _read_proc() -> dict[int, _Process]:
    table: dict[int, _Process] = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            with open(f"/proc/{entry.name}/stat", "rb") as file:
                stat = file.read()
        except OSError:  # it exited meanwhile
            continue
        # The second field is the name in brackets, which may itself contain spaces and brackets (proc_pid_stat(5)).
        state, parent = stat[stat.rindex(b")") + 2 :].split()[:2]
        table[int(entry.name)] = _Process(int(parent), state in (b"Z", b"X"))
    return table


def _read_ps() -> dict[int, _Process]:
    table: dict[int, _Process] = {}
    import subprocess

    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True)
    for line in listing.stdout.splitlines():
        pid, parent, state = line.split(None, 2)
        table[int(pid)] = _Process(int(parent), state.startswith("Z"))
    return table


def descendants(root: int) -> set[int]:
    """Return every living process below a process. Zombies are not included."""
    table = _process_table()
    children: dict[int, list[int]] = {}
    for pid, process in table.items():
        children.setdefault(process.parent, []).append(pid)
    result: set[int] = set()
    pending = list(children.get(root, ()))
    while pending:
        pid = pending.pop()
        if pid in result:
            continue
        result.add(pid)
        pending.extend(children.get(pid, ()))
    return {pid for pid in result if not table[pid].is_zombie}


def zombie_children(parent: int) -> set[int]:
    """Return the children of a process that have exited, and whose exit status it has not collected yet."""
    return {pid for pid, process in _process_table().items() if process.parent == parent and process.is_zombie}


def reap_orphans(excluded: set[int]) -> None:
    """Collect the exit status of zombies that this process adopted.

    Args:
        excluded: Children whose exit status other code collects.
    """
    me = os.getpid()
    for pid, process in _process_table().items():
        if process.parent == me and process.is_zombie and pid not in excluded:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:  # another thread has collected it meanwhile
                continue


def wait_for_exit(pids: set[int], timeout: float) -> bool:
    """Wait until processes have exited.

    Args:
        pids: Process ids. Processes that do not exist count as exited.
        timeout: Seconds.

    Returns:
        Whether all of them exited in time.
    """
    deadline = time.monotonic() + timeout
    handles: list[int] = []
    try:
        poller = select.poll()
        for pid in pids:
            try:
                handle = open_pidfd(pid)
            except ProcessLookupError:
                continue
            if handle is None:
                return _poll_for_exit(pids, deadline)
            handles.append(handle)
            poller.register(handle, select.POLLIN)
        running = len(handles)
        while running:
            ready = poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if not ready:
                return False
            for handle, _ in ready:
                poller.unregister(handle)
                running -= 1
        return True
    finally:
        for handle in handles:
            os.close(handle)


def _poll_for_exit(pids: set[int], deadline: float) -> bool:
    while True:
        table = _process_table()
        # A zombie has exited, also if its exit status has not been collected yet.
        pids = {pid for pid in pids & table.keys() if not table[pid].is_zombie}
        if not pids:
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(min(_POLL_INTERVAL, max(0.0, deadline - time.monotonic())))


def signal_processes(pids: set[int], number: int) -> set[int]:
    """Send a signal to processes. Those that have exited are skipped.

    Returns:
        The processes that this user may not signal, for example one that sudo started for another user.
    """
    refused: set[int] = set()
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
        except PermissionError:
            refused.add(pid)
    return refused


def terminate_all(find: Callable[[], set[int]], *, grace: float) -> set[int]:
    """Terminate processes: SIGTERM, SIGKILL after a grace period, then SIGKILL to those that were started meanwhile.

    Args:
        find: Returns the processes that still run. It is called before each step, so that new children are found.
        grace: Seconds between SIGTERM and SIGKILL; 0 sends SIGKILL immediately.

    Returns:
        The processes that this user may not signal. They are still running.
    """
    refused: set[int] = set()
    if grace > 0:
        pids = find()
        if not pids:
            return refused
        refused = signal_processes(pids, signal.SIGTERM)
        wait_for_exit(pids - refused, grace)
    while pids := find() - refused:
        refused |= signal_processes(pids, signal.SIGKILL)
        # A process in an uninterruptible system call exits only when the call returns.
        wait_for_exit(pids - refused, _KILL_INTERVAL)
    return refused
