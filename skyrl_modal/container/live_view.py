"""The live view of the output: a pipe whose reader may stop reading, or a function."""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from collections.abc import Callable

from skyrl_modal.protocol.log_lines import prefixed

TYPE_CHECKING = False  # the same as in typing, whose import takes time

if TYPE_CHECKING:
    from typing import Protocol

    from skyrl_modal.protocol.state import FailureCause
else:
    Protocol = object

#: Bytes that are kept in memory for a pipe whose reader is slow, if they are not in the file with the output. The
#: command waits while there are more.
MAX_UNSTORED_BYTES = 16 << 20
#: At the end of the command: seconds without progress of the reader after which the bytes in memory are discarded.
READER_TIMEOUT = 1.0
#: At the end of the command: seconds after which they are discarded although the reader makes progress.
MAX_DRAIN_SECONDS = 10.0

_CHUNK_SIZE = 1 << 20


class LiveView(Protocol):
    """Receives the output while the command runs. No method raises OSError."""

    def write(self, data: bytes, stored: int) -> None:
        """Append output.

        Args:
            data: The output.
            stored: The number of bytes, from the beginning of all output, that the file contains without a gap.
        """

    def wait_for_space(self) -> None:
        """Wait while the view cannot accept more output."""

    def begin(self) -> None:
        """Prepare for the output of a command."""

    def end(self) -> None:
        """Limit the time for which the view waits for its reader, since the command has ended."""

    def finish(self) -> None:
        """Wait, for a limited time, until the reader has received what it cannot find in the file."""


class FunctionView:
    """A live view that is a function, which may raise OSError if the view was closed.

    Args:
        write: Writes bytes.
    """

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write: Callable[[bytes], object] | None = write

    def write(self, data: bytes, stored: int) -> None:
        """Pass output to the function, until it fails."""
        if self._write is not None:
            try:
                self._write(data)
            except OSError:  # the view was closed; the log remains
                self._write = None

    def wait_for_space(self) -> None:
        """Return: ``write`` has waited."""

    def begin(self) -> None:
        """Return: nothing is to be prepared."""

    def end(self) -> None:
        """Return: nothing is kept in memory."""

    def finish(self) -> None:
        """Return: nothing is kept in memory."""


class PipeWriter:
    """Writes a stream of bytes to a pipe, without waiting for its reader.

    What the reader receives is always a beginning of the stream, without a gap. If the pipe is full, a thread continues
    when the reader has read. It reads from a file what the file contains of the stream; only other bytes are kept in
    memory. The reader itself finds the rest in the file if the writer exits first.

    Args:
        descriptor: The end of the pipe to write to. It becomes non-blocking.
        path: The file that contains the stream; None for none.
    """

    def __init__(self, descriptor: int, path: str | None = None) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._path = path
        self._file: int | None = None
        self._condition = threading.Condition()
        self._total = 0
        self._stored = 0
        self._sent = 0
        # The bytes from the position max(stored, sent) on.
        self._unstored = bytearray()
        # Whether the thread, and nothing else, writes to the pipe.
        self._is_behind = False
        self._is_closed = False
        self._thread: threading.Thread | None = None
        self._is_reader_limited = False

    @property
    def unstored_bytes(self) -> int:
        """The number of bytes that are kept in memory."""
        return len(self._unstored)

    def write(self, data: bytes, stored: int = 0) -> None:
        """Append bytes to the stream. See ``LiveView.write``."""
        with self._condition:
            if self._is_closed:
                return
            begin = self._total
            self._total += len(data)
            self._stored = stored
            if not self._is_behind:
                self._send(data)
                if self._sent == self._total or self._is_closed:
                    return
                self._is_behind = True
            first = max(stored, self._sent, begin)
            if first < self._total:
                self._unstored += memoryview(data)[first - begin :]
            self._wake_thread()

    def wait_for_space(self) -> None:
        """Wait while more than ``MAX_UNSTORED_BYTES`` are kept in memory."""
        if len(self._unstored) > MAX_UNSTORED_BYTES:
            with self._condition:
                self._wait(MAX_UNSTORED_BYTES)

    def begin(self) -> None:
        """Wait for the reader without a limit from now on."""
        self._is_reader_limited = False

    def end(self) -> None:
        """Wait for the reader only for a limited time from now on."""
        with self._condition:
            self._is_reader_limited = True
            self._condition.notify_all()

    def finish(self) -> None:
        """Wait, for a limited time, until nothing is kept in memory."""
        self.end()
        if self._unstored:
            with self._condition:
                self._wait(0)

    def _wait(self, limit: int) -> None:
        """Wait while more than ``limit`` bytes are kept in memory. If the time limit is exceeded, end the stream."""
        begin = since = time.monotonic()
        sent = self._sent
        while len(self._unstored) > limit and not self._is_closed:
            now = time.monotonic()
            if self._sent != sent:
                sent, since = self._sent, now
            remaining = None
            if self._is_reader_limited:
                remaining = min(since + READER_TIMEOUT, begin + MAX_DRAIN_SECONDS) - now
                if remaining <= 0:
                    self._close()
                    return
            self._condition.wait(remaining)

    def _send(self, data: bytes | memoryview) -> int:
        """Write as much to the pipe as it accepts, and return the number of bytes."""
        try:
            written = os.write(self._descriptor, data)
        except BlockingIOError:
            return 0
        except OSError:  # the reader has closed the pipe
            self._close()
            return 0
        self._sent += written
        return written

    def _close(self) -> None:
        self._is_closed = True
        self._unstored.clear()
        self._condition.notify_all()

    # -- the thread --------------------------------------------------------------------------------------------------

    def _wake_thread(self) -> None:
        if self._thread is None:  # most pipes never need it
            self._thread = threading.Thread(target=self._send_rest, name="live-view", daemon=True)
            self._thread.start()
        else:
            self._condition.notify_all()

    def _send_rest(self) -> None:
        poller = select.poll()
        poller.register(self._descriptor, select.POLLOUT)
        while True:
            rest = memoryview(self._next_chunk())
            if not rest:
                break
            while rest:
                poller.poll()
                with self._condition:
                    if self._is_closed:
                        break
                    sent = self._sent
                    written = self._send(rest)
                    rest = rest[written:]
                    if sent >= self._stored:
                        del self._unstored[:written]
                    if self._sent == self._total:
                        self._is_behind = False
                    self._condition.notify_all()
        if self._file is not None:
            os.close(self._file)

    def _next_chunk(self) -> bytes:
        """Wait until bytes are to be sent, and return the first of them; empty if the stream has ended."""
        with self._condition:
            self._condition.wait_for(lambda: self._is_behind or self._is_closed)
            if self._is_closed:
                return b""
            length = min(_CHUNK_SIZE, self._stored - self._sent)
            if length <= 0:
                return bytes(self._unstored[:_CHUNK_SIZE])
        chunk = self._read_file(length)
        if not chunk:  # the command has removed or truncated the file: what follows would not be the rest of the stream
            with self._condition:
                self._close()
        return chunk

    def _read_file(self, length: int) -> bytes:
        try:
            if self._file is None and self._path is not None:
                self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            return b"" if self._file is None else os.pread(self._file, length, self._sent)
        except OSError:
            return b""


def print_message(text: str, cause: FailureCause | None = None) -> None:
    """Print a message of the launcher in a function on Modal. The run does not depend on its messages.

    They are on standard error, since standard output is the command's.
    """
    try:
        sys.stderr.write(prefixed(text, cause))
        sys.stderr.flush()
    except OSError:
        pass
