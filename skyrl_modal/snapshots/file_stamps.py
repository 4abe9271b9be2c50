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
import sys
from array import array
from collections.abc import Sequence
from itertools import chain
from operator import attrgetter
from pathlib import Path

from skyrl_modal.dataclass import dataclass
from skyrl_modal.gitfiles.digest import normalized_mode
from skyrl_modal.snapshots.content_pool import UNFINISHED_PREFIX, removed_on_failure

_MAGIC = f"skyrl-modal stamps 2 {sys.byteorder}\n".encode()
_HEADER = struct.Struct("<32sQQ")
_STAMP = struct.Struct("5q")
_DIGEST_SIZE = 32
_FACTS = attrgetter("st_size", "st_mtime_ns", "st_ctime_ns", "st_ino", "st_mode")
# More than a clock tick of any kernel (at most 10 ms), for a file system that uses this machine's clock.
CLOCK_TICK_NS = 50_000_000
# For a file system that may use another machine's clock, or a resolution of two seconds, as FAT does.
COARSE_CLOCK_NS = 2_500_000_000

#: Stamp and SHA-256 of files, by their paths.
Records = dict[str, tuple[bytes, bytes]]


def stamps_of(statuses: Sequence[os.stat_result]) -> bytes:
    """Return the stamps of files, one after the other: size, both times in nanoseconds, inode and mode."""
    facts = chain.from_iterable(map(_FACTS, statuses))
    try:
        return array("q", facts).tobytes()
    except OverflowError:
        # Some file systems have inodes of 64 bits.
        signed = ((fact + 2**63) % 2**64 - 2**63 for status in statuses for fact in _FACTS(status))
        return array("q", signed).tobytes()


def split_stamps(stamps: bytes) -> list[bytes]:
    """Return each of several stamps."""
    return _split(stamps, _STAMP.size)


def without_trusted_size(stamp: bytes) -> bytes:
    """Return a stamp that never matches, so that the file is read again."""
    return _STAMP.pack(-1, *_STAMP.unpack(stamp)[1:])


@dataclass(frozen=True, slots=True)
class FileStamps:
    """The files of the last snapshot of one folder.

    They are stored as columns, so that those of unchanged files are compared without an object for each file.

    Attributes:
        digest: The digest of that snapshot; all zeros if there was none.
        names: The paths, as bytes with a NUL between them.
        stamps: The stamp of each file. Its size is -1 if it cannot be trusted.
        shas: The SHA-256 of the content of each file.
    """

    digest: bytes = bytes(_DIGEST_SIZE)
    names: bytes = b""
    stamps: bytes = b""
    shas: bytes = b""

    @property
    def count(self) -> int:
        """The number of files."""
        return len(self.shas) // _DIGEST_SIZE

    @classmethod
    def of(cls, digest: str, records: Records) -> FileStamps:
        """Return the stamps of the files of a snapshot."""
        stamps, shas = zip(*records.values(), strict=True) if records else ((), ())
        return cls(bytes.fromhex(digest), os.fsencode("\0".join(records)), b"".join(stamps), b"".join(shas))

    def records(self) -> Records:
        """Return stamp and SHA-256 of each file, by its path."""
        columns = zip(split_stamps(self.stamps), _split(self.shas, _DIGEST_SIZE), strict=True)
        return dict(zip(self._paths(), columns, strict=True))

    def entries(self) -> dict[str, tuple[int, bytes]]:
        """Return normalized mode and SHA-256 of each file, by its path."""
        return entries_of(self.records())

    def _paths(self) -> list[str]:
        return os.fsdecode(self.names).split("\0") if self.shas else []

    @classmethod
    def load(cls, path: Path) -> FileStamps:
        """Load saved stamps. A missing or damaged file counts as empty: files are then read again."""
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return cls()
        if not data.startswith(_MAGIC) or hashlib.sha256(memoryview(data)[:-32]).digest() != data[-32:]:
            return cls()
        digest, count, width = _HEADER.unpack_from(data, len(_MAGIC))
        stamps = len(_MAGIC) + _HEADER.size
        shas = stamps + count * _STAMP.size
        names = shas + count * _DIGEST_SIZE
        return cls(digest, data[names : names + width], data[stamps:shas], data[shas:names])

    def save(self, path: Path) -> None:
        """Save the stamps in one step."""
        import tempfile  # imported here, since it takes time

        body = _MAGIC + _HEADER.pack(self.digest, self.count, len(self.names)) + self.stamps + self.shas + self.names
        # The name is unique, because several threads of a process may save the stamps of one folder.
        handle, name = tempfile.mkstemp(prefix=UNFINISHED_PREFIX, dir=path.parent)
        with removed_on_failure(name):
            with os.fdopen(handle, "wb") as file:
                file.write(body + hashlib.sha256(body).digest())
            Path(name).replace(path)


def entries_of(records: Records) -> dict[str, tuple[int, bytes]]:
    """Return normalized mode and SHA-256 of each file, by its path."""
    # The mode is the last fact of a stamp. Most files have one of a few modes.
    modes = {end: normalized_mode(int.from_bytes(end, sys.byteorder)) for end in {r[0][-8:] for r in records.values()}}
    return {path: (modes[stamp[-8:]], sha) for path, (stamp, sha) in records.items()}


def _split(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def latest_trusted_time(folder: Path, device: int) -> int:
    """Return the time in nanoseconds before which a file must have changed for its stamp to be trusted.

    It must be called before the files are read.

    Args:
        folder: A folder in which a file can be created, to read the current time of its file system.
        device: The device of the files.
    """
    import tempfile  # imported here, since it takes time

    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(b".")
        probe.flush()
        status = os.fstat(probe.fileno())
    # Another device may use another clock.
    margin = CLOCK_TICK_NS if status.st_dev == device and status.st_ctime_ns % 1_000_000 else COARSE_CLOCK_NS
    return status.st_ctime_ns - margin
