"""The standard streams of this process, which its caller may have closed, or whose encoding may lack characters."""

from __future__ import annotations

import io
import os
import sys


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
