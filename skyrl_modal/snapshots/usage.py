"""The size of a store, which is measured only if the recorded size may be wrong."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from skyrl_modal.snapshots.content_pool import ContentPool, StoredContent


class Additions:
    """The contents that one process adds to a pool.

    From the first one on, a marker in the store shows that the recorded size is wrong. It remains if the process is
    killed.

    Args:
        store: The folder of the store.
        pool: The pool.

    Attributes:
        bytes: The number of bytes by which the pool grew.
        marker: The name of the marker; None before the first addition.
    """

    def __init__(self, store: Path, pool: ContentPool) -> None:
        self._markers, self._pool = store / "adding", pool
        self.bytes = 0
        self.marker: str | None = None

    def begin(self) -> None:
        """Create the marker."""
        if self.marker is None:
            import tempfile  # imported here, since it takes time

            handle, name = tempfile.mkstemp(dir=self._markers)
            os.close(handle)
            self.marker = os.path.basename(name)

    def add(self, path: str) -> StoredContent:
        """Add the content of a file, as ``ContentPool.add`` does."""
        self.begin()
        content = self._pool.add(path)
        self.bytes += content.added
        return content


class UsageRecord:
    """The recorded size of a pool. It is used under the exclusive lock of the store.

    Args:
        store: The folder of the store.
    """

    def __init__(self, store: Path) -> None:
        self._file, self._markers = store / "size", store / "adding"

    def read(self, additions: Additions) -> int | None:
        """Return the size including some additions; None if another process has added contents and not recorded them.

        Args:
            additions: Those of this process.
        """
        if set(os.listdir(self._markers)) - {additions.marker}:
            return None
        try:
            text = self._file.read_text()
        except (OSError, ValueError):
            return None
        return int(text) + additions.bytes if text.isascii() and text.isdigit() and len(text) < 20 else None

    def write(self, size: int) -> None:
        """Record the size of the pool."""
        self._file.write_text(str(size))
        for name in os.listdir(self._markers):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._markers / name)
