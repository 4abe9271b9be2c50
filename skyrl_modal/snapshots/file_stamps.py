"""Stamps of the files of a snapshot: an unchanged file is recognised by its stamp and not read again.

A file counts as unchanged if size, both times, inode and mode are unchanged. Times have a resolution of one clock tick,
so a file that was written in the tick in which it was read may be written again without a new time. An entry whose
times are that recent is stored without its size, so that it never matches. git does the same for entries that it calls
racily clean (Documentation/technical/racy-git.txt).
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from pathlib import Path

from attrs import define, field

from skyrl_modal.snapshots.content_pool import UNFINISHED_PREFIX, removed_on_failure

_MAGIC = b"skyrl-modal stamps 1\n"
_HEADER = struct.Struct("<32sQQ")
_RECORD = struct.Struct("<qqqQI32s")
# More than a clock tick of any kernel (at most 10 ms), for a file system that uses this machine's clock.
CLOCK_TICK_NS = 50_000_000
# For a file system that may use another machine's clock, or a resolution of two seconds, as FAT does.
COARSE_CLOCK_NS = 2_500_000_000

Stamp = tuple[int, int, int, int, int]
"""Size, time of modification and time of status change in nanoseconds, inode, mode."""


def stamp_of(status: os.stat_result) -> Stamp:
    """Return the stamp of a file's status."""
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_mode)


@define
class FileStamps:
    """The files of the last snapshot of one folder.

    Attributes:
        digest: The digest of that snapshot; all zeros if there was none.
        entries: Stamp and SHA-256 by path. The size is -1 if the stamp cannot be trusted.
    """

    digest: bytes = bytes(32)
    entries: dict[str, tuple[Stamp, bytes]] = field(factory=dict)

    @classmethod
    def load(cls, path: Path) -> FileStamps:
        """Load saved stamps. A missing or damaged file counts as empty: files are then read again."""
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return cls()
        body = data[:-32]
        if not data.startswith(_MAGIC) or hashlib.sha256(body).digest() != data[-32:]:
            return cls()
        digest, count, width = _HEADER.unpack_from(body, len(_MAGIC))
        start = len(_MAGIC) + _HEADER.size
        middle = start + count * _RECORD.size
        names = os.fsdecode(body[middle : middle + width]).split("\0")
        records = _RECORD.iter_unpack(body[start:middle])
        return cls(digest, {name: (record[:5], record[5]) for name, record in zip(names, records, strict=False)})

    def save(self, path: Path) -> None:
        """Save the stamps in one step."""
        records = b"".join(_RECORD.pack(*stamp, sha) for stamp, sha in self.entries.values())
        names = os.fsencode("\0".join(self.entries))
        body = _MAGIC + _HEADER.pack(self.digest, len(self.entries), len(names)) + records + names
        # The name is unique, because several threads of a process may save the stamps of one folder.
        handle, name = tempfile.mkstemp(prefix=UNFINISHED_PREFIX, dir=path.parent)
        with removed_on_failure(name):
            with os.fdopen(handle, "wb") as file:
                file.write(body + hashlib.sha256(body).digest())
            Path(name).replace(path)


def latest_trusted_time(folder: Path, device: int) -> int:
    """Return the time in nanoseconds before which a file must have changed for its stamp to be trusted.

    It must be called before the files are read.

    Args:
        folder: A folder in which a file can be created, to read the current time of its file system.
        device: The device of the files.
    """
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(b".")
        probe.flush()
        status = os.fstat(probe.fileno())
    # Another device may use another clock.
    margin = CLOCK_TICK_NS if status.st_dev == device and status.st_ctime_ns % 1_000_000 else COARSE_CLOCK_NS
    return status.st_ctime_ns - margin


def without_trusted_size(stamp: Stamp) -> Stamp:
    """Return a stamp that never matches, so that the file is read again."""
    return (-1, *stamp[1:])
