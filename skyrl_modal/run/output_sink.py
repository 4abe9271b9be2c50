"""Destinations of a command's output."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Callable
from typing import IO

from skyrl_modal.errors import SpecError
from skyrl_modal.reporting import NullReporter, Reporter
from skyrl_modal.views.standard_streams import discard_standard_output
from skyrl_modal.views.text import write_text

#: A callable that accepts bytes, a binary file, or None for standard output.
OutputTarget = Callable[[bytes], object] | IO[bytes] | None
Sink = Callable[[bytes], object]


def open_sink(target: OutputTarget, reporter: Reporter | None = None) -> Sink:
    """Return a function that writes output to a target.

    Args:
        target: The target.
        reporter: Receives a warning if standard output cannot be written to; None to discard it.

    Raises:
        SpecError: The target is neither a callable nor a binary file.
    """
    if target is None:
        return _StandardOutput(reporter or NullReporter()).write
    if callable(target):
        return target
    write = getattr(target, "write", None)
    if write is None or isinstance(getattr(target, "encoding", None), str):
        raise SpecError("output", target, 'pass a callable that accepts bytes, or a file opened with "wb"')

    def write_completely(data: bytes) -> None:
        view = memoryview(data)
        while view:
            # An unbuffered file may write a part only; other objects return None.
            written = write(view)
            view = view[len(view) if written is None else written :]
        flush = getattr(target, "flush", None)
        if flush is not None:
            flush()

    return write_completely


class _StandardOutput:
    """Writes to ``sys.stdout`` as it is at that time: bytes if it accepts them, else text, as in a notebook.

    If it cannot be written to, for example since its disk is full, the rest of the output is discarded with a warning:
    the run continues, and its complete output is stored in output.log. Only a reader that closes a pipe ends the run.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._reporter = reporter
        self._has_failed = False

    def write(self, data: bytes) -> None:
        stream = sys.stdout
        if stream is None or self._has_failed:
            return
        binary = getattr(stream, "buffer", None)
        try:
            if binary is not None:
                stream.flush()
                binary.write(data)
                binary.flush()
            else:
                write_text(stream, self._decoder.decode(data))
        except BrokenPipeError:
            raise
        except OSError as error:
            self._has_failed = True
            discard_standard_output()
            reason = os.strerror(error.errno) if error.errno is not None else str(error)
            self._reporter.warn(
                f"standard output cannot be written to ({reason}). The run continues, and its complete output is stored"
            )
