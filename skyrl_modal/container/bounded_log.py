"""A log in the run's folder that grows with its source, and is shortened when it exceeds its limit."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from skyrl_modal.container.log_selection import LogLimits, LogParts, has_errors
from skyrl_modal.container.masked_logs import append_private, make_private_folder
from skyrl_modal.dataclass import replace
from skyrl_modal.protocol.run_folder import open_regular_file, write_all, write_atomically


class BoundedLog:
    """One kept log. What is written to it is masked already.

    The file is always complete up to what was appended last, so it is of use also if this process is killed.

    Args:
        path: The file. Its folder is created.
        limits: What is kept of it.

    Attributes:
        path: The file.
        size: Its size in bytes.
        has_errors: Whether it has lines with errors.
        changed_at: Time of ``time.monotonic()`` of its last change.
    """

    def __init__(self, path: Path, limits: LogLimits) -> None:
        self.path = path
        self.size = 0
        self.has_errors = False
        self.changed_at = 0.0
        self._limits = limits
        self._parts = LogParts()  # what precedes the end of the file, as it was shortened last
        self._tail_start = 0
        self._seen: dict[bytes, int] = {}
        self._lost = 0

    def append(self, data: bytes) -> None:
        """Append masked data. What cannot be written, for example to a full disk, is counted in the next append.

        Raises:
            OSError: It cannot be written.
        """
        note = b"==> %d bytes could not be written here <==\n" % self._lost if self._lost else b""
        try:
            self._write(note + data)
        except OSError:
            self._lost += len(data)
            raise
        self._lost = 0
        self.has_errors = self.has_errors or has_errors(data)
        self.changed_at = time.monotonic()
        if self.size > self._limits.file:
            self._shorten()

    def remove(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):
            self.path.unlink()

    def _write(self, data: bytes) -> None:
        if not self.size:
            make_private_folder(self.path.parent)
        descriptor = append_private(self.path, os.O_APPEND | os.O_NONBLOCK)
        try:
            write_all(descriptor, data)
        finally:
            self.size = os.fstat(descriptor).st_size
            os.close(descriptor)

    def _shorten(self) -> None:
        with open_regular_file(self.path) as file:
            file.seek(self._tail_start)
            parts = replace(self._parts, tail=file.read()).shortened(self._limits, self._seen)
        content = parts.render()
        write_atomically(self.path, content, mode=0o600)
        self.size = len(content)
        self._tail_start = len(content) - len(parts.tail)
        self._parts = replace(parts, tail=b"")
