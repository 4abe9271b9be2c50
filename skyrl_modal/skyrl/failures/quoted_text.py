"""Parts of a log that quote texts: responses of a model, and the output of tests."""

from __future__ import annotations

import re

from skyrl_modal.dataclass import dataclass
from skyrl_modal.skyrl.failures.line_context import line_at
from skyrl_modal.skyrl.failures.log_line import parse_line

#: Bytes of a response at most: a log that ends its quotation differently is read from there.
_MAX_RESPONSE = 1 << 20
_TIME = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[.,]\d{3}(?:\x1b\[[0-9;]{0,20}m)* \| ")


@dataclass(frozen=True, slots=True)
class _Form:
    """How quoted text begins and ends.

    Attributes:
        begin: A text in the line before it.
        end: What is found in the line after it.
        is_of_process: Whether it ends only at a line with the same prefix, and does not contain lines of others.
    """

    begin: bytes
    end: re.Pattern[bytes]
    is_of_process: bool


_FORMS = (
    # pretty_print_example, skyrl/train/utils/trajectory_logging.py of August 2026; the next message of loguru ends it.
    _Form(b"  Output (Total Reward: ", _TIME, is_of_process=True),
    # pytest 8
    _Form(b"= FAILURES =", re.compile(rb"short test summary info|=+ \d+ (?:failed|passed)"), is_of_process=False),
    _Form(b"= ERRORS =", re.compile(rb"short test summary info|=+ \d+ (?:failed|passed|error)"), is_of_process=False),
)


@dataclass(frozen=True, slots=True)
class _Quote:
    """Quoted text in a block: where it begins and ends, and the prefix of its process; None for all processes."""

    begin: int
    end: int
    process: str | None


class QuotedText:
    """Finds quoted text in consecutive blocks of a log."""

    def __init__(self) -> None:
        self._quotes: list[_Quote] = []
        self._open: tuple[_Form, str, int] | None = None  # the form, the process, and bytes until now

    def read(self, block: bytes) -> None:
        """Read the next block."""
        self._quotes = []
        position = 0
        if self._open is not None:
            form, process, size = self._open
            position = self._close(block, form, process, 0, size)
        while self._open is None:
            found = [(at, form) for form in _FORMS if (at := block.find(form.begin, position)) >= 0]
            if not found:
                return
            at, form = min(found, key=lambda pair: pair[0])
            begin, end = line_at(block, at, len(form.begin))
            if begin < 0:
                position = at + len(form.begin)
                continue
            position = self._close(block, form, parse_line(block[begin:end]).process, end, 0)

    def _close(self, block: bytes, form: _Form, process: str, begin: int, size: int) -> int:
        """Add quoted text from a position, and return where it ends."""
        end = self._find_end(block, form, process, begin)
        limit = begin + _MAX_RESPONSE - size if form.is_of_process else len(block)
        is_open = end is None and limit >= len(block)
        end = min(len(block) if end is None else end, limit)
        self._open = (form, process, size + end - begin) if is_open else None
        self._quotes.append(_Quote(begin, end, process if form.is_of_process else None))
        return max(end, begin + 1)

    @staticmethod
    def _find_end(block: bytes, form: _Form, process: str, position: int) -> int | None:
        while (match := form.end.search(block, position)) is not None:
            begin, end = line_at(block, match.start(), 0)
            if not form.is_of_process or (begin >= 0 and parse_line(block[begin:end]).process == process):
                return max(begin, position)
            position = match.end()
        return None

    def contains(self, position: int, process: str) -> bool:
        """Return whether a line of a process at a position of the block is quoted."""
        return any(quote.begin <= position < quote.end and quote.process in (None, process) for quote in self._quotes)
