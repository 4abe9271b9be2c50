"""Lines of a log of any size, by their numbers: an index of newlines, and lines for people."""

from __future__ import annotations

import time
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Protocol

from skyrl_modal.dataclass import dataclass
from skyrl_modal.web.plain import plain

#: Bytes between two entries of the index.
_BLOCK = 1 << 20
#: Bytes of the beginning and of the end of a line that are read, and characters that are shown.
_LINE_BYTES, MAX_CHARACTERS = 16_000, 4_000
#: Seconds that a search takes at most.
_SEARCH_SECONDS = 2.0


class LogSource(Protocol):
    """Where the bytes come from: an ``Execution``, or some bytes."""

    def log_size(self) -> int:
        """Return the number of bytes that are there now."""

    def read_log(self, offset: int) -> bytes:
        """Return a part that starts at an offset; empty at the end."""


class BytesSource:
    """A log in the memory."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def log_size(self) -> int:
        """Return the number of bytes."""
        return len(self._content)

    def read_log(self, offset: int) -> bytes:
        """Return a part that starts at an offset."""
        return self._content[offset : offset + _BLOCK]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    r"""One line.

    Attributes:
        n: Its number, from 1.
        text: Its text without control characters. After ``\r``, a terminal would show the rest of the line.
        cut: Whether a part of it was left out.
    """

    n: int
    text: str
    cut: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundLines:
    """Lines that contain a text.

    Attributes:
        lines: The last ones, in their order.
        matches: Number of lines that contain it; None if the log was not searched to its beginning.
        searched_from: Number of the first line that was searched.
    """

    lines: Sequence[LogLine]
    matches: int | None
    searched_from: int


class LogIndex:
    r"""The newlines of a log that may grow. Its memory is 8 bytes for each MiB of the log.

    Args:
        source: The log.

    Example:
        >>> index = LogIndex(BytesSource(b"one\ntwo\nthree"))
        >>> index.update()
        >>> index.total, [line.text for line in index.lines(2, 3)]
        (3, ['two', 'three'])
    """

    def __init__(self, source: LogSource) -> None:
        self._source = source
        self._newlines = array("Q")  # before the end of each block
        self._rest = 0  # newlines after the last complete block
        self._end = 0
        self._ends_with_newline = True

    def update(self) -> None:
        """Read what was added to the log. A log that has become smaller is read again."""
        size = self._source.log_size()
        if size < self._end:
            self._newlines, self._rest, self._end, self._ends_with_newline = array("Q"), 0, 0, True
        while self._end < size:
            limit = (self._end // _BLOCK + 1) * _BLOCK
            data = self._source.read_log(self._end)[: min(limit, size) - self._end]
            if not data:
                return
            self._rest += data.count(b"\n")
            self._end += len(data)
            self._ends_with_newline = data.endswith(b"\n")
            if self._end == limit:
                self._newlines.append(self._before(len(self._newlines)) + self._rest)
                self._rest = 0

    def _before(self, block: int) -> int:
        """Return the number of newlines before a block."""
        return self._newlines[block - 1] if block else 0

    @property
    def size(self) -> int:
        """Number of bytes that were read."""
        return self._end

    @property
    def total(self) -> int:
        """Number of lines, with one that has not ended."""
        return self._before(len(self._newlines)) + self._rest + (not self._ends_with_newline)

    def _read(self, begin: int, end: int) -> bytes:
        parts = []
        while begin < end and (data := self._source.read_log(begin)[: end - begin]):
            parts.append(data)
            begin += len(data)
        return b"".join(parts)

    def _read_block(self, block: int) -> bytes:
        return self._read(block * _BLOCK, min(self._end, (block + 1) * _BLOCK))

    def lines(self, first: int, last: int) -> list[LogLine]:
        """Return lines by their numbers, from 1. Lines that do not exist are left out."""
        first, last = max(first, 1), min(last, self.total)
        return [_to_line(number, *parts) for number, parts in enumerate(self._raw_lines(first, last), first)]

    def _raw_lines(self, first: int, last: int) -> Iterator[tuple[bytes, bytes, int]]:
        """Yield beginning, end and length of lines. Blocks in the middle of a long line are not read."""
        block = bisect_left(self._newlines, first - 1) if first > 1 else 0
        missing = first - 1 - self._before(block)  # newlines in this block before the first line
        head, tail, length = b"", b"", 0
        while first <= last:
            if block >= len(self._newlines) and block * _BLOCK >= self._end:
                yield head, tail, length
                return
            has_newline = block >= len(self._newlines) or self._newlines[block] > self._before(block)
            if not has_newline and len(head) >= _LINE_BYTES:
                tail = self._read((block + 1) * _BLOCK - _LINE_BYTES, (block + 1) * _BLOCK)
                length += _BLOCK
                block += 1
                continue
            data, position = self._read_block(block), 0
            for _ in range(missing):
                position = data.index(b"\n", position) + 1
            missing = 0
            while first <= last:
                end = data.find(b"\n", position)
                piece = data[position : end if end >= 0 else len(data)]
                head += piece[: _LINE_BYTES - len(head)]
                tail = (tail + piece[-_LINE_BYTES:])[-_LINE_BYTES:]
                length += len(piece)
                if end < 0:
                    break
                yield head, tail, length
                head, tail, length = b"", b"", 0
                first, position = first + 1, end + 1
            block += 1

    def search(self, text: str, *, before: int | None = None, limit: int = 500) -> FoundLines:
        """Return the last lines that contain a text, without distinction of upper and lower case in ASCII.

        Args:
            text: The text.
            before: Search only the lines before this one; None for all.
            limit: Number of lines at most.
        """
        needle = text.encode("utf-8", "replace").lower()
        latest = time.monotonic() + _SEARCH_SECONDS
        numbers: list[int] = []
        first_found: int | None = None
        count, block = 0, (max(self._end, 1) - 1) // _BLOCK
        if before is not None:
            block = min(block, bisect_left(self._newlines, before - 1))
        while block >= 0 and needle:
            if time.monotonic() > latest:
                break
            in_block = self._search_block(block, needle, before)
            if in_block and in_block[-1] == first_found:  # a long line
                in_block.pop()
            count += len(in_block)
            first_found = in_block[0] if in_block else first_found
            numbers += reversed(in_block[-(limit - len(numbers)) :] if len(numbers) < limit else [])
            block -= 1
        lines = [line for number in sorted(numbers) for line in self.lines(number, number)]
        searched_from = 1 if block < 0 else self._before(block + 1) + 1
        return FoundLines(lines=lines, matches=count if block < 0 else None, searched_from=searched_from)

    def _search_block(self, block: int, needle: bytes, before: int | None) -> list[int]:
        """Return the numbers of the lines with a match that begins in a block."""
        begin = block * _BLOCK
        end = min(self._end, begin + _BLOCK)
        data = self._read(begin, min(self._end, end + len(needle) - 1)).lower()
        found: list[int] = []
        number, counted, position = self._before(block) + 1, 0, data.find(needle)
        while 0 <= position < end - begin:
            number += data.count(b"\n", counted, position)
            if before is not None and number >= before:
                break
            found.append(number)
            counted = position
            newline = data.find(b"\n", position)
            if newline < 0:
                break
            position = data.find(needle, newline)
        return found


def _to_line(number: int, head: bytes, tail: bytes, length: int) -> LogLine:
    r"""Return a line for people. Of a line with ``\r``, a terminal shows the last part."""
    head, tail = head.rstrip(b"\r"), tail.rstrip(b"\r")
    _, is_overwritten, shown = tail.rpartition(b"\r")
    is_cut = length > _LINE_BYTES and not is_overwritten
    text = plain((shown if is_overwritten else head).decode("utf-8", "replace"))
    return LogLine(n=number, text=text[:MAX_CHARACTERS], cut=is_cut or len(text) > MAX_CHARACTERS)
