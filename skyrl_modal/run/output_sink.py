"""Destinations of a command's output."""

from __future__ import annotations

import codecs
import io
import os
import select
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import IO, Any, ClassVar, Self

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
    if getattr(target, "write", None) is None or isinstance(getattr(target, "encoding", None), str):
        raise SpecError("output", target, 'pass a callable that accepts bytes, or a file opened with "wb"')

    def write(data: bytes) -> None:
        _write_completely(target, data)

    return write


def _write_completely(stream: IO[bytes], data: bytes) -> None:
    """Write all bytes to a stream, also to a non-blocking one, and flush it."""
    view = memoryview(data)
    while view:
        try:
            # An unbuffered file may write a part only, and returns None if it cannot write now.
            written = stream.write(view)
        except BlockingIOError as error:  # of a buffered file
            view = view[error.characters_written :]
            _wait_writable(stream)
            continue
        if written is None and isinstance(stream, io.RawIOBase):
            _wait_writable(stream)
        else:
            view = view[len(view) if written is None else written :]
    if getattr(stream, "flush", None) is not None:
        _flush(stream)


def _flush(stream: IO[Any]) -> None:
    while True:
        try:
            stream.flush()
        except BlockingIOError:
            _wait_writable(stream)
        else:
            return


def _wait_writable(stream: IO[Any]) -> None:
    poller = select.poll()
    poller.register(stream.fileno(), select.POLLOUT)
    poller.poll()


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
                _flush(stream)
                # Without a buffer: if Ctrl-C interrupts this call, Python does not write the rest when it exits.
                _write_completely(getattr(binary, "raw", binary), data)
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


class ParallelOutput:
    """Standard output of one of several runs of this process that are awaited at the same time.

    While there are several, each line begins with the name of its run; a line is then written when it has ended.

    Args:
        label: The name of the run.
        reporter: Receives a warning if standard output cannot be written to.
    """

    _active: ClassVar[set[ParallelOutput]] = set()
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, label: str, reporter: Reporter) -> None:
        self._prefix = f"[{label}] ".encode()
        self._write = open_sink(None, reporter)
        self._rest = b""
        self._is_inside_line = False

    def __enter__(self) -> Self:
        with self._lock:
            self._active.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._active.discard(self)
        if self._rest:
            self._write(self._prefix + self._rest + b"\n")

    def __call__(self, data: bytes) -> None:
        """Write a part of the output."""
        if len(self._active) < 2 and not self._rest:
            self._write(data)
            self._is_inside_line = not data.endswith(b"\n")
            return
        if self._is_inside_line:  # the line began when there was no other run
            self._write(b"\n")
            self._is_inside_line = False
        *lines, self._rest = (self._rest + data).split(b"\n")
        if lines:
            self._write(b"".join(self._prefix + line + b"\n" for line in lines))
