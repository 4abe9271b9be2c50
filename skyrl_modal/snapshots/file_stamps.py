"""What a snapshot remembers of each file, so that an unchanged one is not read again.

A file is taken as unchanged where size, both times, inode and mode are what they were. Times come in ticks, so a file
that was written in the tick in which it was read may be written again without a new time: an entry whose times are that
young is kept without its size, and so never matches. git calls these entries racily clean, and does the same.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from pathlib import Path

from attrs import define, field

_MAGIC = b"skyrl-modal stamps 1\n"
_HEADER = struct.Struct("<32sQQ")
_RECORD = struct.Struct("<qqqQI32s")
# Longer than a tick of any kernel (10 ms at most), where the file system is known to go by this machine's clock.
_TICK = 50_000_000
# Where it may go by another machine's, or counts in pairs of seconds, as FAT does.
_COARSE = 2_500_000_000

Stamp = tuple[int, int, int, int, int]
"""Size, time of change of the content and of the inode in nanoseconds, inode, mode."""


def stamp_of(status: os.stat_result) -> Stamp:
    """What of a file's status has to stay the same for it to be the same file."""
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_mode)


@define
class Stamps:
    """The files of the last snapshot of one folder.

    Attributes:
        digest: Of that snapshot; all zeros where there was none.
        entries: Stamp and SHA-256 by path; a size of -1 where the stamp cannot be trusted.
    """

    digest: bytes = bytes(32)
    entries: dict[str, tuple[Stamp, bytes]] = field(factory=dict)

    @classmethod
    def load(cls, path: Path) -> Stamps:
        """Reads what was saved; an absent or damaged file is an empty one, since all that is lost is time."""
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
        names = body[middle : middle + width].decode("utf-8", "surrogateescape").split("\0")
        records = _RECORD.iter_unpack(body[start:middle])
        return cls(digest, {name: (record[:5], record[5]) for name, record in zip(names, records, strict=False)})

    def save(self, path: Path) -> None:
        """Writes them, so that a reader sees the old ones or the new ones."""
        records = b"".join(_RECORD.pack(*stamp, sha) for stamp, sha in self.entries.values())
        names = "\0".join(self.entries).encode("utf-8", "surrogateescape")
        body = _MAGIC + _HEADER.pack(self.digest, len(self.entries), len(names)) + records + names
        handle, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(body + hashlib.sha256(body).digest())
        Path(name).replace(path)


def youngest_trusted(folder: Path, other: int) -> int:
    """The time in nanoseconds before which a file must have been changed for its stamp to tell it from a later state.

    Taken before the files are read.

    Args:
        folder: Where a file may be written to ask what time its file system thinks it is.
        other: The device of the files in question.
    """
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(b".")
        probe.flush()
        status = os.fstat(probe.fileno())
    # Files on another device may go by another clock.
    margin = _TICK if status.st_dev == other and status.st_ctime_ns % 1_000_000 else _COARSE
    return status.st_ctime_ns - margin


def untrusted(stamp: Stamp) -> Stamp:
    """The stamp of a file that has to be read again."""
    return (-1, *stamp[1:])
