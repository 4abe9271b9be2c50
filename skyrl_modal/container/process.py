"""Processes of a run: started in a session of their own, waited for by events, ended with all that they started."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36


def returncode_of(status: int) -> int:
    """The shell's exit code for Popen's: 128+N where signal N ended the process.

    Example:
        >>> returncode_of(-9), returncode_of(7)
        (137, 7)
    """
    return 128 - status if status < 0 else status


def become_subreaper() -> None:
    """Have orphans below this process come to it instead of init, so that they are found and ended (Linux)."""
    if sys.platform == "linux" and os.getpid() != 1:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def shell_argv(command: str) -> list[str]:
    """The argument list that runs a shell string: by bash where there is one, else by sh."""
    for shell in ("/bin/bash", "/usr/bin/bash"):
        if os.access(shell, os.X_OK):
            return [shell, "-c", command]
    return ["/bin/sh", "-c", command]


class Child:
    """A process in a session of its own. Its end is told to a callable, from a thread.

    Attributes:
        pid: Its process id, which is also its process group's.
        returncode: Popen's exit status; None while it runs.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        cwd: str | None,
        env: Mapping[str, str],
        output: int,
        on_exit: Callable[[int], None],
    ) -> None:
        self._process = subprocess.Popen(
            argv,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._on_exit = on_exit
        self._waiter = threading.Thread(target=self._wait, name=f"wait-{self.pid}", daemon=True)
        self._waiter.start()

    @property
    def returncode(self) -> int | None:
        """Popen's exit status; None while it runs."""
        return self._process.returncode

    def _wait(self) -> None:
        self._on_exit(self._process.wait())

    def signal_group(self, number: int) -> None:
        """Send a signal to the whole process group; nothing happens where it is gone."""
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            # PermissionError: macOS says so of a group that has only zombies left.
            return

    def join(self) -> None:
        """Wait until its end has been told."""
        self._waiter.join()


def _parents() -> dict[int, tuple[int, bool]]:
    """Every process that can be seen: its parent, and whether it is a zombie."""
    found: dict[int, tuple[int, bool]] = {}
    if Path("/proc/self/stat").exists():
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit():
                continue
            try:
                with open(f"/proc/{entry.name}/stat", "rb") as file:
                    stat = file.read()
            except OSError:  # it ended meanwhile
                continue
            # The name, in brackets, may hold blanks and brackets itself: read from its last bracket on.
            state, parent = stat[stat.rindex(b")") + 2 :].split()[:2]
            found[int(entry.name)] = (int(parent), state in (b"Z", b"X"))
        return found
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True)
    for line in listing.stdout.splitlines():
        pid, parent_pid, status = line.split(None, 2)
        found[int(pid)] = (int(parent_pid), status.startswith("Z"))
    return found


def descendants(root: int) -> set[int]:
    """Every living process below one, zombies left out."""
    table = _parents()
    children: dict[int, list[int]] = {}
    for pid, (parent, _) in table.items():
        children.setdefault(parent, []).append(pid)
    result: set[int] = set()
    pending = list(children.get(root, ()))
    while pending:
        pid = pending.pop()
        if pid in result:
            continue
        result.add(pid)
        pending.extend(children.get(pid, ()))
    return {pid for pid in result if not table[pid][1]}


def reap_orphans(kept: set[int]) -> None:
    """Collect the exit status of ended children that this process adopted.

    Args:
        kept: Children that somebody else waits for.
    """
    me = os.getpid()
    for pid, (parent, zombie) in _parents().items():
        if parent == me and zombie and pid not in kept:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:  # somebody else collected it meanwhile
                continue


def wait_gone(pids: set[int], seconds: float) -> bool:
    """Wait until processes have ended.

    Args:
        pids: Process ids; ended ones and such as do not exist count as gone.
        seconds: How long to wait at the most.

    Returns:
        Whether all of them ended in time.
    """
    deadline = time.monotonic() + seconds
    if not hasattr(os, "pidfd_open"):
        # No event to wait for (macOS): ask at short intervals.
        while remaining := {pid for pid in pids if pid in _parents()}:
            if time.monotonic() >= deadline:
                return False
            time.sleep(min(0.05, max(0.0, deadline - time.monotonic())))
            pids = remaining
        return True
    handles: list[int] = []
    try:
        poller = select.poll()
        for pid in pids:
            try:
                handle = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            handles.append(handle)
            poller.register(handle, select.POLLIN)
        waiting = len(handles)
        while waiting:
            ready = poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if not ready:
                return False
            for handle, _ in ready:
                poller.unregister(handle)
                waiting -= 1
        return True
    finally:
        for handle in handles:
            os.close(handle)


def send(pids: set[int], number: int) -> set[int]:
    """Send a signal to processes; those that are gone are passed over.

    Returns:
        The processes that may not be signalled, for example one that sudo started for another user.
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


def end_all(find: Callable[[], set[int]], *, grace: float) -> set[int]:
    """End processes: TERM, then KILL after a grace, then KILL whatever was started meanwhile.

    Args:
        find: Gives the processes that are still to end; asked anew for every step, so that late children are seen.
        grace: Seconds between TERM and KILL; 0 kills at once.

    Returns:
        Processes that may not be signalled and are left.
    """
    refused: set[int] = set()
    if grace > 0:
        pids = find()
        if not pids:
            return refused
        refused = send(pids, signal.SIGTERM)
        wait_gone(pids - refused, grace)
    while pids := find() - refused:
        refused |= send(pids, signal.SIGKILL)
        # A process in an uninterruptible call goes when the call returns; nothing can be done but wait for it.
        wait_gone(pids - refused, 5.0)
    return refused
