"""Logs without the values of secrets: of a running process, and the end of a file."""

from __future__ import annotations

import contextlib
import os
import select
import stat
import threading
from io import FileIO
from pathlib import Path

from skyrl_modal.container.masking import SecretMask

_CHUNK_SIZE = 1 << 20
#: Only this user may read a log or list the folder with it.
_FILE_MODE = 0o600
_FOLDER_MODE = 0o700
#: Seconds to wait for the end of a log at its last writer's exit. Only a process that is not ended delays it longer.
_END_TIMEOUT = 1.0


def append_private(path: Path | str, flags: int = os.O_APPEND) -> int:
    """Open a log that only this user can read, and return its descriptor. A symbolic link is not followed.

    Raises:
        OSError: It cannot be opened.
    """
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | flags, _FILE_MODE)


def make_private_folder(path: Path) -> None:
    """Create a folder that only this user can list, and correct the permissions of an existing one.

    Some file systems have no permissions, and the folder may belong to another user: it remains as it is then.

    Raises:
        OSError: It cannot be created.
    """
    path.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
    if stat.S_IMODE(path.stat().st_mode) != _FOLDER_MODE:
        with contextlib.suppress(OSError):
            path.chmod(_FOLDER_MODE)


class MaskedLog:
    """A file to which a thread appends, masked, what processes write to a pipe.

    A write error ends the file, and not the processes.

    Args:
        path: The file.
        secrets: The values to mask.

    Attributes:
        writer: The descriptor for the processes, until ``close_writer``.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(self, path: Path, secrets: SecretMask) -> None:
        self._file: FileIO | None = FileIO(append_private(path), "a")
        self._masker = secrets.new_masker()
        self._reader, self.writer = os.pipe()
        self._poll = select.poll()
        self._poll.register(self._reader, select.POLLIN)
        self._lock = threading.Lock()
        self._has_ended = False
        self._is_writer_open = True
        self._thread = threading.Thread(target=self._copy, name="masked-log", daemon=True)
        self._thread.start()

    def close_writer(self) -> None:
        """Close this process's own descriptor, after the processes have been started."""
        if self._is_writer_open:
            self._is_writer_open = False
            os.close(self.writer)

    def write_available(self) -> None:
        """Write what the processes have written until now."""
        with self._lock:
            while not self._has_ended and self._poll.poll(0):
                chunk = os.read(self._reader, _CHUNK_SIZE)
                self._has_ended = not chunk
                self._write(self._masker.feed(chunk) if chunk else self._masker.flush())

    def join(self) -> None:
        """Wait until everything is written, after the processes have been ended."""
        self.close_writer()
        self._thread.join(_END_TIMEOUT)
        self.write_available()

    def _copy(self) -> None:
        waiting = select.poll()
        waiting.register(self._reader, select.POLLIN)
        while not self._has_ended:
            waiting.poll()
            self.write_available()
        os.close(self._reader)
        if self._file is not None:
            self._file.close()

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while self._file is not None and view:
            try:
                view = view[self._file.write(view) :]
            except OSError:  # a full disk: the processes must not wait for a reader of their pipe
                self._file.close()
                self._file = None


def read_masked_end(path: Path, size: int, secrets: SecretMask) -> str:
    """Return the last complete lines of a file, masked.

    A value at the beginning of the part that is read may be incomplete, and would not be masked: the first line of a
    part is left out.

    Args:
        path: The file. Anything but a regular file is empty.
        size: Number of bytes that are read at most.
        secrets: The values to mask.

    Raises:
        OSError: The file cannot be read.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:
        information = os.fstat(file.fileno())
        if not stat.S_ISREG(information.st_mode):
            return ""
        start = max(0, information.st_size - size)
        content = os.pread(file.fileno(), size, start)
    if start:
        content = content.partition(b"\n")[2]
    masker = secrets.new_masker()
    return (masker.feed(content) + masker.flush()).decode("utf-8", "replace")
