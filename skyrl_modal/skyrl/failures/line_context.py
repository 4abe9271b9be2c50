"""The lines before a line of a log: the traceback that it belongs to, and the message that announced it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime

from skyrl_modal.skyrl.failures.log_line import LogLine, parse_line

#: Bytes of a line that are read, and bytes and lines before it that are searched.
MAX_LINE = 4096
_MAX_BYTES, _MAX_LINES = 64 << 10, 300
#: What announces an exception that the program has handled.
_HANDLED = re.compile(
    r"(?i)exception ignored (?:in|on)|\bretry|\bretries|\bwill try\b|\btrying again\b|\bfall(?:ing)? ?back\b"
    r"|\bignor(?:ing|ed)\b"
    r"|\bskipp(?:ing|ed)\b|\brecover(?:ed|ing)\b|\bnon-fatal\b|\bcontinuing\b"
)
_CHAIN = ("The above exception was", "During handling of the above")
_TRACEBACK = "Traceback (most recent call last)"
_EXCEPTION_LINE = re.compile(r"[A-Za-z_][\w.]{0,150}(?:\([\w.]{0,80}\))?(?::|$)")


def line_at(block: bytes, position: int, length: int) -> tuple[int, int]:
    """Return where the line of a text begins and ends; of a very long line, a part. -1 if its beginning is far away.

    A carriage return ends a line too, since progress bars print one after each of their states.
    """
    low = max(0, position - MAX_LINE)
    begin = max(block.rfind(b"\n", low, position), block.rfind(b"\r", low, position)) + 1
    if begin == 0 and low > 0:
        begin = -1
    high = min(len(block), position + length + MAX_LINE)
    ends = [end for mark in (b"\n", b"\r") if (end := block.find(mark, position, high)) >= 0]
    return begin, min(ends, default=high)


class LineContext:
    """What the lines before a line show.

    Args:
        block: A part of the log.
        begin: Where the line begins in it.
        process: The prefix of its process. Lines of other processes are left out.
        year: The year, for times without one.

    Attributes:
        traceback: The lines of its traceback, without prefixes; empty if it has none.
        is_handled: Whether the exception was announced as one that the program handles.
        time: The time of the last line before it that has one; None if there is none.
    """

    def __init__(self, block: bytes, begin: int, process: str, year: int) -> None:
        self.traceback = ""
        self.is_handled = False
        self.time: datetime | None = None
        lines: list[str] = []
        has_header, is_announced = False, False
        for line in _lines_before(block, begin, year):
            if line.process == process and not is_announced:
                if _belongs_to_traceback(line, has_header=has_header):
                    has_header = has_header or line.message.startswith(_TRACEBACK)
                    lines.append(line.message)
                else:
                    is_announced = True
                    is_harmless = line.is_harmless or line.level == ""
                    self.is_handled = has_header and is_harmless and _HANDLED.search(line.message) is not None
            if self.time is None:
                self.time = line.time
            if is_announced and self.time is not None:
                break
        if has_header:
            self.traceback = "\n".join(reversed(lines))


def _belongs_to_traceback(line: LogLine, *, has_header: bool) -> bool:
    """Return whether a line before an exception is part of its traceback, or of one that it was raised from."""
    message = line.message
    if line.is_indented or message.startswith((_TRACEBACK, *_CHAIN)):
        return True
    return not line.is_harmless and _EXCEPTION_LINE.match(message) is not None and not _HANDLED.search(message)


def _lines_before(block: bytes, begin: int, year: int) -> Iterator[LogLine]:
    """Yield the lines before a position, the last one first."""
    low = max(0, begin - _MAX_BYTES)
    for raw in reversed(block[low:begin].replace(b"\r", b"\n").split(b"\n")[:-1][-_MAX_LINES:]):
        yield parse_line(raw[:MAX_LINE], year)
