"""Watch the processes without which a Ray node cannot continue.

``ray start --block`` looks for exited processes once a second, but only when the node has started (Ray 2.48 to 2.60,
ray/scripts/scripts.py). Until then it waits for an answer of the process that has exited, for up to a minute.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Collection

from skyrl_modal.container.process_tree import descendants, zombie_children
from skyrl_modal.container.ray_stop import is_ray_stop_running
from skyrl_modal.machine import open_pidfd

#: Seconds between two looks for processes that have not started yet. There is no event for it.
_FIND_INTERVAL = 0.5
#: Seconds in which ``ray start`` may exit by itself after one of the processes has exited.
_EXIT_TIMEOUT = 3.0


class RayWatch:
    """Finds processes of a Ray node by their names, and waits for their exit.

    Args:
        root: Process id of ``ray start``.
        names: Names of the programs.
        end: Ends ``ray start``. It is called some seconds after a process has exited, unless ``close`` was called.

    Attributes:
        exited: The name of the process that has exited; None while all of them run.
        is_stopped: Whether ``ray stop`` was running at that time.
    """

    def __init__(self, root: int, names: Collection[str], end: Callable[[], None]) -> None:
        self._root = root
        self._names = set(names)
        self._end = end
        self._closed = threading.Event()
        self.exited: str | None = None
        self.is_stopped = False
        threading.Thread(target=self._run, name="ray-watch", daemon=True).start()

    def close(self) -> None:
        """Stop watching, since the node is ended."""
        self._closed.set()

    def _run(self) -> None:
        handles: dict[int, str] = {}
        try:
            while len(handles) < len(self._names) and not self._closed.wait(_FIND_INTERVAL):
                self._find(handles)
                if self._find_exited() or self._wait(handles, 0):
                    break
            else:
                self._wait(handles, None)
        finally:
            for handle in handles:
                os.close(handle)
        if self.exited is not None and not self._closed.wait(_EXIT_TIMEOUT):
            self._end()

    def _find(self, handles: dict[int, str]) -> None:
        missing = self._names.difference(handles.values())
        for pid in descendants(self._root):
            name = _program_name(pid)
            if name in missing:
                try:
                    handle = open_pidfd(pid)
                except ProcessLookupError:
                    continue
                if handle is not None:
                    handles[handle] = name

    def _find_exited(self) -> bool:
        """Find a process that has exited before its handle was opened. Return whether there is one."""
        # `ray start` collects the exit status only when it has started.
        for pid in zombie_children(self._root):
            name = _read(f"/proc/{pid}/comm").decode("utf-8", "replace").strip()
            if name in self._names and not self._closed.is_set():
                self._set_exited(name)
                return True
        return False

    def _wait(self, handles: dict[int, str], timeout: float | None) -> bool:
        """Wait for the exit of a process. Return whether there was one."""
        if not handles or self._closed.is_set():
            return False
        poller = select.poll()
        for handle in handles:
            poller.register(handle, select.POLLIN)
        for handle, _ in poller.poll(timeout):
            if not self._closed.is_set():
                self._set_exited(handles[handle])
            return True
        return False

    def _set_exited(self, name: str) -> None:
        # `ray stop` ends the raylet first, and runs until all other processes have exited.
        self.is_stopped = is_ray_stop_running()
        self.exited = name


def _program_name(pid: int) -> str:
    return os.path.basename(_read(f"/proc/{pid}/cmdline").split(b"\0", 1)[0]).decode("utf-8", "replace")


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:  # the process has exited meanwhile, or the system has no /proc
        return b""
