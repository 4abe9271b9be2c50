"""File descriptors that are handed to a child process, none of them forgotten."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from pathlib import Path


class Descriptors:
    """File descriptors that are closed at the end of a ``with``, but those that were taken out."""

    def __init__(self) -> None:
        self._open: set[int] = set()

    def __enter__(self) -> Descriptors:
        return self

    def __exit__(self, *exc: object) -> None:
        for descriptor in self._open:
            os.close(descriptor)

    def add(self, descriptor: int) -> int:
        """Take a descriptor over."""
        self._open.add(descriptor)
        return descriptor

    def take(self, descriptor: int) -> int:
        """Give a descriptor away: it is not closed here."""
        self._open.remove(descriptor)
        return descriptor

    def pipe(self, size: int | None = None) -> tuple[int, int]:
        """A new pipe: its reading end and its writing end.

        Args:
            size: Bytes that it should hold; a system that refuses keeps its own size.
        """
        reading, writing = (self.add(end) for end in os.pipe())
        if size is not None and hasattr(fcntl, "F_SETPIPE_SZ"):
            with contextlib.suppress(OSError):
                fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, size)
        return reading, writing

    def open(self, path: str | Path, flags: int) -> int:
        """Open a file that only this user may read."""
        return self.add(os.open(path, flags | os.O_CLOEXEC, 0o600))

    def lock(self, path: Path) -> int:
        """An exclusive lock that lasts as long as somebody holds the descriptor: for as long as the run lives."""
        descriptor = self.open(path, os.O_RDWR | os.O_CREAT)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return descriptor

    def file(self, content: bytes) -> int:
        """A file without a name that holds ``content``."""
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.flush()
            file.seek(0)
            return self.add(os.dup(file.fileno()))

    def caller(self) -> tuple[int, int | None]:
        """A descriptor that gets readable when this process ends, and one to keep open until then.

        A pidfd knows of this process alone; the pipe, where there are none (macOS), also of children that it forked.
        """
        if hasattr(os, "pidfd_open"):
            return self.add(os.pidfd_open(os.getpid())), None
        return self.pipe()
