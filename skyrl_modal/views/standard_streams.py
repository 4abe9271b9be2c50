"""The standard streams of this process, which its caller may have closed, or whose encoding may lack characters."""

from __future__ import annotations

import io
import os
import select
import stat
import sys
import threading


def open_missing_descriptors() -> None:
    """Open the null device for each standard stream that is closed, as with ``>&-``.

    Otherwise the next file to be opened, such as a lock or a record, would have its number, and child processes would
    write their output to that file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # has the lowest free number


def accept_any_text() -> None:
    """Let standard output and standard error escape characters that their encoding does not have.

    Names of files and the output of commands may contain any character.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def discard_standard_output() -> None:
    """Redirect standard output to the null device. What Python could not write yet would fail again when it exits."""
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # there is none, or it is not a file
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def exit_when_output_is_closed(code: int) -> None:
    """End this process as soon as the reader of standard output closes its pipe, as ``tail -f`` does.

    Otherwise it would notice only when it has something to write. Nothing happens if standard output is no pipe or
    socket, or the system has no ``poll``.

    Args:
        code: The exit code.
    """

    def watch(descriptor: int) -> None:
        poll = select.poll()
        poll.register(descriptor, 0)  # errors and hangups are reported without being requested
        poll.poll()
        os._exit(code)  # the main thread may wait for output

    try:
        descriptor = sys.stdout.fileno()
        mode = os.fstat(descriptor).st_mode
    except (AttributeError, OSError, ValueError):  # there is none, or it is not a file
        return
    if hasattr(select, "poll") and (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        threading.Thread(target=watch, args=(descriptor,), name="skyrl-modal-reader", daemon=True).start()
