"""The Python stacks of processes that do not continue.

The hook that Python processes of a run load (``formats.hook``) registers ``faulthandler`` for a signal. Each process
writes the stacks of all of its threads to one file then, also if it waits in a call of C code. Needs Linux's /proc.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable

#: The signal, as ``faulthandler`` is registered for it by the hook.
STACKS_SIGNAL = signal.SIGUSR2
#: Seconds for one process, and for all of them.
PROCESS_TIMEOUT, TOTAL_TIMEOUT = 1.0, 10.0
#: Seconds without a change of the file after which a process has written everything, and between two looks at it.
SETTLED_SECONDS, POLL_INTERVAL = 0.05, 0.01
#: Limit of the text, in bytes: it is sent to rank 0 in one message.
MAX_TEXT_BYTES = 512 << 10


def create_stacks_file(path: str) -> None:
    """Create the file, so that processes can append to it.

    Raises:
        OSError: It cannot be created.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def read_stacks(path: str, pids: Iterable[int]) -> str:
    """Let processes write their stacks, one after another, and return the text.

    A process that has not opened the file has not registered the signal, which would end it. It is listed only.

    Args:
        path: The file of ``create_stacks_file``.
        pids: The processes.
    """
    try:
        identity = os.stat(path)
    except OSError as error:
        return f"the stacks cannot be read: {error.strerror or error}"
    parts, others, deadline = [], [], time.monotonic() + TOTAL_TIMEOUT
    for pid in sorted(pids):
        name = _command_line(pid)
        if name is None:
            continue
        if time.monotonic() > deadline or not _has_open(pid, identity):
            others.append(f"{pid} {name}")
            continue
        parts.append(f"process {pid}: {name}\n{_read_one(path, pid)}")
    if others:
        parts.append("processes without Python stacks:\n" + "".join(f"  {text}\n" for text in others))
    return "\n".join(parts).encode("utf-8", "replace")[:MAX_TEXT_BYTES].decode("utf-8", "ignore")


def _command_line(pid: int) -> str | None:
    """Return the beginning of the command line of a process; None if it has exited."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            content = file.read(4096)
    except OSError:
        return None
    text = content.replace(b"\0", b" ").decode("utf-8", "replace").strip()
    return text[:200] or None


def _has_open(pid: int, identity: os.stat_result) -> bool:
    """Return whether a process has opened the file."""
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as listing:
        for entry in listing:
            with contextlib.suppress(OSError):
                status = os.stat(entry.path)
                if (status.st_dev, status.st_ino) == (identity.st_dev, identity.st_ino):
                    return True
    return False


def _read_one(path: str, pid: int) -> str:
    """Send the signal to a process, and return what it writes until the file does not change any more."""
    begin = _size(path)
    try:
        os.kill(pid, STACKS_SIGNAL)
    except OSError as error:
        return f"  {error.strerror or error}\n"
    size, changed_at, deadline = begin, 0.0, time.monotonic() + PROCESS_TIMEOUT
    while (now := time.monotonic()) < deadline:
        current = _size(path)
        if current != size:
            size, changed_at = current, now
        elif changed_at and now - changed_at > SETTLED_SECONDS:
            break
        time.sleep(POLL_INTERVAL)  # the kernel has no event for the end of another process's writes
    if size == begin:
        return f"  it did not write its stacks within {PROCESS_TIMEOUT:g} s\n"
    with contextlib.suppress(OSError), open(path, "rb") as file:
        file.seek(begin)
        return file.read(min(size - begin, MAX_TEXT_BYTES)).decode("utf-8", "replace")
    return "  the file cannot be read\n"


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
