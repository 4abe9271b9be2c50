"""Start one child process in a session of its own."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence


def shell_argv(command: str) -> list[str]:
    """Return the argument list that runs a shell string: with bash if it is installed, else with sh."""
    for shell in ("/bin/bash", "/usr/bin/bash"):
        if os.access(shell, os.X_OK):
            return [shell, "-c", command]
    return ["/bin/sh", "-c", command]


class ChildProcess:
    """A process in a session of its own.

    Args:
        argv: Program and arguments.
        cwd: Working directory; None for this process's own.
        env: Its environment.
        output: Descriptor for its standard output and standard error.
        on_exit: Called from a thread when it exits, with the status as in ``subprocess.Popen.returncode``.

    Attributes:
        pid: Its process id, which is also the id of its process group.

    Raises:
        OSError: It cannot be started.
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
    def status(self) -> int | None:
        """Exit status as in ``subprocess.Popen.returncode``; None while it runs."""
        return self._process.returncode

    def _wait(self) -> None:
        self._on_exit(self._process.wait())

    def signal_group(self, number: int) -> None:
        """Send a signal to the whole process group. Nothing happens if it has exited."""
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            # macOS raises PermissionError for a group that consists of zombies only.
            return

    def join(self) -> None:
        """Wait until it has exited and ``on_exit`` has returned."""
        self._waiter.join()
