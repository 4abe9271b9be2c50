"""Copies what is appended to logs, masked. Files that are replaced or renamed are followed by their inode."""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable

from skyrl_modal.container.log_sources import FileId, FoundLog, LogSearch
from skyrl_modal.container.masking import Masker, SecretMask
from skyrl_modal.dataclass import dataclass

#: Bytes of a file, and of all files together, that are read in one look. What was written before them is left out.
MAX_FILE_BYTES, MAX_ROUND_BYTES = 8 << 20, 64 << 20
#: Bytes that are read of a file in any case.
_MIN_FILE_BYTES = 64 << 10
_CHUNK_SIZE = 1 << 20
#: Number of logs whose problems are remembered.
_MAX_PROBLEMS = 1000


@dataclass(slots=True)
class _Source:
    """A file that is followed.

    Attributes:
        name: The name of its kept log.
        masker: Masks what is read.
        offset: Number of bytes that were read.
        is_after_gap: Whether the next bytes follow bytes that were left out, up to the next line.
    """

    name: str
    masker: Masker
    offset: int = 0
    is_after_gap: bool = False


class LogFollower:
    """Copies the logs of one rank.

    Args:
        search: Finds the files.
        secrets: The values to mask.

    Attributes:
        problems: What could not be copied, by the name of the log.
    """

    def __init__(self, search: LogSearch, secrets: SecretMask) -> None:
        self._search = search
        self._secrets = secrets
        self._sources: dict[FileId, _Source] = {}
        self._budget = 0
        self.problems: dict[str, str] = {}

    def copy_new(self, append: Callable[[str, bytes], None]) -> bool:
        """Copy what is new in all files. Return whether anything was copied.

        Args:
            append: Receives the name of a log, and what is appended to it. It may raise OSError.
        """
        self._budget = MAX_ROUND_BYTES
        found, has_copied = set(), False
        for log in self._search.find():
            found.add(log.id)
            source = self._sources.get(log.id)
            if log.size == (0 if source is None else source.offset):
                continue
            if source is None:
                source = self._sources[log.id] = _Source(log.name, self._secrets.new_masker())
            has_copied |= self._try(source, functools.partial(self._copy, log, source, append))
        if self._search.is_complete:
            for removed in self._sources.keys() - found:
                source = self._sources.pop(removed)
                self._try(source, functools.partial(_append_rest, source, append))
        return has_copied

    def finish(self, append: Callable[[str, bytes], None]) -> None:
        """Copy what is new, and what the maskers hold back since it may be the beginning of a value."""
        self.copy_new(append)
        for source in self._sources.values():
            self._try(source, functools.partial(_append_rest, source, append))

    def _try(self, source: _Source, copy: Callable[[], None]) -> bool:
        try:
            copy()
        except OSError as error:  # it was removed meanwhile, may not be read, or the disk is full
            if len(self.problems) < _MAX_PROBLEMS:
                self.problems[source.name] = error.strerror or str(error)
            return False
        return True

    def _copy(self, log: FoundLog, source: _Source, append: Callable[[str, bytes], None]) -> None:
        descriptor = log.open()
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or (status.st_dev, status.st_ino) != log.id:
                return  # it was replaced after the search has found it; the next one finds the new file
            if status.st_size < source.offset:
                _append_rest(source, append)
                source.offset, source.is_after_gap = 0, False
                append(source.name, b"==> the file was written from its beginning again <==\n")
            self._skip(source, status.st_size, append)
            while source.offset < status.st_size:
                size = min(_CHUNK_SIZE, status.st_size - source.offset)
                chunk = os.pread(descriptor, size, source.offset)
                if not chunk:
                    break
                source.offset += len(chunk)
                self._budget -= len(chunk)
                _append_chunk(source, chunk, append)
        finally:
            os.close(descriptor)

    def _skip(self, source: _Source, size: int, append: Callable[[str, bytes], None]) -> None:
        """Leave out the first new bytes of a file that has too many of them."""
        skipped = size - source.offset - max(_MIN_FILE_BYTES, min(MAX_FILE_BYTES, self._budget))
        if skipped <= 0:
            return
        _append_rest(source, append)
        source.offset += skipped
        # The first line may begin with a part of a value, which could not be masked.
        source.is_after_gap = True
        append(source.name, b"==> about %d bytes are omitted here, since they were written too fast <==\n" % skipped)


def _append_chunk(source: _Source, chunk: bytes, append: Callable[[str, bytes], None]) -> None:
    if source.is_after_gap:
        ends = [position for position in (chunk.find(b"\n"), chunk.find(b"\r")) if position >= 0]
        if not ends:
            return
        source.is_after_gap = False
        chunk = chunk[min(ends) + 1 :]
    masked = source.masker.feed(chunk)
    if masked:
        append(source.name, masked)


def _append_rest(source: _Source, append: Callable[[str, bytes], None]) -> None:
    rest = source.masker.flush()
    if rest:
        append(source.name, rest)
