"""The command line: parses options, calls Launcher and Run, and prints the results."""

from __future__ import annotations

import atexit
import gc
import sys

#: The exit code after Ctrl-C. The module with the exit codes may not be loaded yet.
_INTERRUPTED = 130


def main() -> None:
    """Run the command line. Print an error of the launcher as a message and exit with 125."""
    try:
        _collect_rarely()
        from skyrl_modal.cli.process import run_process  # imported here, with few searches for unreachable objects

        exit_code = run_process()
    except KeyboardInterrupt:  # while the modules are loaded, which takes most of the time until a run starts
        exit_code = _INTERRUPTED
    sys.exit(exit_code)


def _collect_rarely() -> None:
    """Search for unreachable objects less often than by default, and not at the end of the process.

    Nearly all objects are those of imported modules, which remain until the end. With Modal's client, a third of the
    processor time of a command is spent on searching them. The first limit is above the number of objects that the
    imports of a local run create.
    """
    gc.set_threshold(100_000, 50, 50)
    atexit.register(gc.freeze)  # the first handler is called last
