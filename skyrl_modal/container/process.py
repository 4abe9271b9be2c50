"""Start one child process in a session of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

from skyrl_modal.protocol.run_folder import write_all

#: The limit of Linux on one argument, with the null byte at its end: MAX_ARG_STRLEN in execve(2), for pages of 4 KiB.
MAX_ARGUMENT_BYTES = 128 * 1024
#: The first character after a command on standard input. A command substitution removes newlines at the end of what it
#: reads, and so must not find the command's own there.
_END = "."
#: Read a command from standard input and execute it, with the same ``$0``, line numbers and standard input as if it
#: were an argument. ``.`` or a script file would set ``$BASH_SOURCE``, permit ``return``, and leave a descriptor open;
#: ``read`` of bash 5.2 changes bytes that are not UTF-8. bash reads /dev/stdin itself, ``cat`` must be on the PATH.
_BASH_LOADER = (
    "BASH_EXECUTION_STRING=$(</dev/stdin); exec <>/dev/null; "
    'BASH_EXECUTION_STRING=${BASH_EXECUTION_STRING%?}; eval "$BASH_EXECUTION_STRING"'
)
#: The same for sh, which needs a variable and ``cat``.
_SH_LOADER = '_command=$(cat); exec <>/dev/null; eval "unset _command; ${_command%?}"'


def shell_argv(command: str) -> list[str]:
    """Return the argument list that runs a shell string: with bash if it is installed, else with sh."""
    for shell in ("/bin/bash", "/usr/bin/bash"):
        if os.access(shell, os.X_OK):
            return [shell, "-c", command]
    return ["/bin/sh", "-c", command]


@contextlib.contextmanager
def open_shell_command(command: str) -> Iterator[tuple[list[str], int]]:
    """Yield the argument list that runs a shell string, and its standard input as for ``subprocess.Popen``.

    A command that is longer than one argument may be is passed on standard input, which is empty again when the command
    starts. Its processes see no difference, except that the shell remains the parent of the last one, ``set -x`` prints
    two plus signs, and a syntax error is reported as one of ``eval``.

    Raises:
        OSError: The command cannot be stored for the shell.
    """
    content = os.fsencode(command)
    argv = shell_argv(command)
    if len(content) < MAX_ARGUMENT_BYTES:
        yield argv, subprocess.DEVNULL
        return
    argv[-1] = _SH_LOADER if argv[0] == "/bin/sh" else _BASH_LOADER
    with _open_unnamed_file() as descriptor:
        write_all(descriptor, content + _END.encode())
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield argv, descriptor


@contextlib.contextmanager
def _open_unnamed_file() -> Iterator[int]:
    """Open an empty file that has no name: on Linux in memory, so that it needs no space on a disk."""
    if sys.platform != "linux":
        import tempfile  # imported here, since its import takes time

        with tempfile.TemporaryFile() as file:
            yield file.fileno()
        return
    descriptor = os.memfd_create("skyrl-modal-command")
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class ChildProcess:
    """A process in a session of its own.

    Args:
        argv: Program and arguments.
        cwd: Working directory; None for this process's own.
        env: Its environment.
        output: Descriptor for its standard output and standard error.
        stdin: Descriptor for its standard input; by default it is empty.
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
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        self._process = subprocess.Popen(
            argv,
            cwd=cwd,
            env=env,
            stdin=stdin,
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

    def kill_group(self) -> None:
        """Kill the whole process group."""
        self.signal_group(signal.SIGKILL)

    def join(self) -> None:
        """Wait until it has exited and ``on_exit`` has returned."""
        self._waiter.join()
