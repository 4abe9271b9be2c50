"""Exit codes of runs."""

from __future__ import annotations

import signal

#: The run was ended at a limit, as timeout(1) does.
TIMED_OUT = 124
#: The launcher refused or failed: nothing ran, or the result is unknown.
LAUNCHER_FAILED = 125
#: The run was interrupted by Ctrl-C before its command had started.
INTERRUPTED = 128 + signal.SIGINT
#: The run was killed.
KILLED = 128 + signal.SIGKILL
#: The reader of the output closed it.
BROKEN_PIPE = 128 + signal.SIGPIPE


def exit_code_of(status: int) -> int:
    """Convert the exit status of ``subprocess.Popen`` to a shell's exit code: 128+N for a process that signal N ended.

    Example:
        >>> exit_code_of(-9), exit_code_of(7)
        (137, 7)
    """
    return 128 - status if status < 0 else status
