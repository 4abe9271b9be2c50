"""File descriptors that are passed to child processes, and locks that last as long as a descriptor is open."""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from skyrl_modal.machine import enlarge_pipe, open_pidfd
from skyrl_modal.protocol.run_folder import write_all


class DescriptorSet:
    """File descriptors that are closed at the end of a ``with`` block, except for those that were released."""

    def __init__(self) -> None:
        self._open: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in self._open:
            os.close(descriptor)
        self._open.clear()

    def add(self, descriptor: int) -> int:
        """Add an open descriptor to the set, and return it."""
        self._open.add(descriptor)
        return descriptor

    def release(self, descriptor: int) -> int:
        """Remove a descriptor from the set without closing it, and return it."""
        self._open.remove(descriptor)
        return descriptor

    def close(self, descriptor: int) -> None:
        """Close a descriptor of the set."""
        os.close(self.release(descriptor))

    def pipe(self, size: int | None = None) -> tuple[int, int]:
        """Open a pipe.

        Args:
            size: Size of its buffer in bytes, as far as the system allows; None for the default size.

        Returns:
            The end to read from, and the end to write to.
        """
        read_end, write_end = (self.add(end) for end in os.pipe())
        if size is not None:
            enlarge_pipe(write_end, size)
        return read_end, write_end

    def open(self, path: str | Path, flags: int) -> int:
        """Open a file. A new file can be read by this user only."""
        return self.add(os.open(path, flags | os.O_CLOEXEC, 0o600))

    def lock(self, path: Path) -> int:
        """Lock a file exclusively. The lock is released when the last duplicate of the descriptor is closed."""
        descriptor = self.open(path, os.O_RDWR | os.O_CREAT)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return descriptor

    def file(self, content: bytes) -> int:
        """Open a file that has no name and holds ``content``: on Linux in memory, since it may be confidential."""
        if sys.platform == "linux":
            descriptor = self.add(os.memfd_create("skyrl-modal"))
            write_all(descriptor, content)
            os.lseek(descriptor, 0, os.SEEK_SET)
            return descriptor
        import tempfile  # imported here, since it takes time

        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.flush()
            file.seek(0)
            return self.add(os.dup(file.fileno()))

    def caller_alive_pipe(self) -> tuple[int, int | None]:
        """Open a descriptor that becomes readable when this process exits.

        Where the system has pidfds, it is one. Elsewhere it is a pipe, which becomes readable only when all children
        that this process has forked without exec have exited too.

        Returns:
            The descriptor, and the end of the pipe that must stay open until the run has ended; None for a pidfd.
        """
        pidfd = open_pidfd(os.getpid())
        return self.pipe() if pidfd is None else (self.add(pidfd), None)
