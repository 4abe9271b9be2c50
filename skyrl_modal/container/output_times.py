"""The times at which output was written, in a file next to output.log, for ``skyrl-modal logs --timestamps``."""

from __future__ import annotations

import os
import time

#: Seconds between two entries, which are the precision of the times. A day of output has 86,400 entries of 30 bytes.
INTERVAL_SECONDS = 1.0
#: Flags that Windows does not have are 0. A named pipe that the command puts there must not block.
_FLAGS = (
    os.O_WRONLY
    | os.O_CREAT
    | os.O_APPEND
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
)


class OutputTimes:
    """Appends lines with a position in output.log, and the time at which what follows it was written.

    Nothing depends on the file: it ends if it cannot be written.

    Args:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        self._path: str | None = path
        self._next = 0.0

    def record(self, position: int) -> None:
        """Record the current time, unless an entry was written less than a second ago.

        Args:
            position: The size of output.log.
        """
        now = time.monotonic()
        if self._path is None or now < self._next:
            return
        self._next = now + INTERVAL_SECONDS
        try:
            descriptor = os.open(self._path, _FLAGS, 0o600)
        except OSError:  # a full disk, or something else has this name
            self._path = None
            return
        try:
            os.write(descriptor, f"{position} {time.time():.3f}\n".encode())
        except OSError:
            self._path = None
        finally:
            os.close(descriptor)
