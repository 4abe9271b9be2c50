"""Which parts of a log are kept if it is larger than its limit: its beginning, its lines with errors, and its end."""

from __future__ import annotations

import re
from collections.abc import Iterator

from skyrl_modal.dataclass import dataclass, replace
from skyrl_modal.protocol.kept_logs import without_state_dumps

#: Lower-case terms of lines with errors. A line that contains one by chance only takes space.
ERROR_TERMS = (
    b"error", b"exception", b"traceback", b"fatal", b"critical", b"panic", b"abort", b"killed", b"out of memory",
    b"(oom)", b"oom-kill", b"oom_kill", b"oomkill", b"outofmemory", b"segmentation fault", b"sigsegv", b"sigabrt",
    b"sigkill", b"sigterm", b"sigbus", b"core dumped", b"assert", b"failed", b"failure", b"cannot ", b"unable to",
    b"denied", b"refused", b"timed out", b"timeout", b"no space left", b"nvrm: xid", b"undefined symbol", b"watchdog",
    b"not found", b"mismatch",
)  # fmt: skip
#: Lines of Ray with the severity ERROR or FATAL (Ray 2.48 to 2.60).
_SEVERE = rb"(?m)^\[\d{4}-[^\]\n]{10,40} [EF] "
_TRACEBACK = b"traceback (most recent call last)"
#: Bytes before and after an error term that count as its line, and lines of one traceback.
_LINE_BYTES, _TRACEBACK_LINES = 4096, 100
#: Number of lines that are kept if they differ in their numbers only, and of forms that are counted.
_MAX_SIMILAR, _MAX_FORMS = 10, 2000
#: Bytes of a line that its form depends on.
_FORM_BYTES = 300


@dataclass(frozen=True, slots=True)
class LogLimits:
    """Limits of one kept log in bytes.

    Attributes:
        file: The size from which it is shortened.
        head: What is kept of its beginning.
        errors: What is kept of the lines with errors between its beginning and its end: half of them the first ones,
            half the last ones.
        tail: What is kept of its end.
    """

    file: int = 1 << 20
    head: int = 64 << 10
    errors: int = 128 << 10
    tail: int = 256 << 10


@dataclass(frozen=True, slots=True)
class LogParts:
    """The parts of a kept log.

    Attributes:
        head: Its beginning; empty if nothing was omitted yet.
        first_errors: The first lines with errors after it.
        last_errors: The last lines with errors before the end.
        omitted: Number of bytes that were omitted.
        tail: Its end.
    """

    head: bytes = b""
    first_errors: bytes = b""
    last_errors: bytes = b""
    omitted: int = 0
    tail: bytes = b""

    @property
    def notes(self) -> tuple[bytes, bytes, bytes]:
        """The lines before the first errors, between them and the last ones, and before the end."""
        if not self.omitted:
            return b"", b"", b""
        is_cut = bool(self.head) and not self.head.endswith(b"\n")
        begin = (b"\n" if is_cut else b"") + b"==> %d bytes are omitted here" % self.omitted
        if not self.first_errors:
            return begin + b" <==\n", b"", b""
        between = b"==> ... and the last ones: <==\n" if self.last_errors else b""
        return begin + b"; those of its lines with errors: <==\n", between, b"==> the end of the log: <==\n"

    def render(self) -> bytes:
        """Return the content of the file."""
        begin, between, end = self.notes
        return b"".join((self.head, begin, self.first_errors, between, self.last_errors, end, self.tail))

    def shortened(self, limits: LogLimits, seen: dict[bytes, int]) -> LogParts:
        """Return the parts with as much as the limits permit.

        Args:
            limits: The limits.
            seen: Number of lines with errors that were kept before, by their form. It is extended.
        """
        head, rest = self.head, without_state_dumps(self.tail)
        if not self.omitted:
            head = _cut_after_line(rest, limits.head)
            rest = rest[len(head) :]
        if len(rest) <= limits.tail:
            return replace(self, tail=rest) if self.omitted else replace(self, tail=head + rest)
        tail = _cut_before_line(rest, limits.tail)
        dropped = rest[: len(rest) - len(tail)]
        first, last = self.first_errors, self.last_errors
        for lines in error_lines(dropped, seen):
            if not last and len(first) + len(lines) <= limits.errors // 2:
                first += lines
            else:
                last += lines
        last = _cut_before_line(last, limits.errors // 2)
        return LogParts(head, first, last, self.omitted + len(dropped), tail)


def has_errors(data: bytes) -> bool:
    r"""Return whether a part of a log has lines with errors.

    Example:
        >>> has_errors(b"ValueError: 3\n"), has_errors(b"loss: 0.3\n")
        (True, False)
    """
    lower = data.lower()
    return any(term in lower for term in ERROR_TERMS) or re.search(_SEVERE, data) is not None


def error_lines(data: bytes, seen: dict[bytes, int]) -> Iterator[bytes]:
    r"""Yield the lines with errors, each with its line end; a traceback is yielded as a whole.

    Of lines that differ in their numbers only, the first ten are yielded.

    Args:
        data: A part of a log.
        seen: Number of lines that were yielded before, by their form. It is extended.

    Example:
        >>> list(error_lines(b"step 1\nKeyError: 'x'\nstep 2\n", {}))
        [b"KeyError: 'x'\n"]
    """
    for start, end in _merged(_error_spans(data)):
        lines = data[start:end].rstrip(b"\r\n") + b"\n"
        form = re.sub(rb"[0-9]+", b"0", lines[:_FORM_BYTES])
        count = seen.get(form, 0)
        if count >= _MAX_SIMILAR:
            continue
        if count or len(seen) < _MAX_FORMS:
            seen[form] = count + 1
        yield lines


def _error_spans(data: bytes) -> list[tuple[int, int]]:
    """Return where lines with errors begin and end, sorted. They may overlap."""
    lower = data.lower()
    spans = []
    for term in ERROR_TERMS:
        position = lower.find(term)
        while position >= 0:
            start, end = _line_around(data, position, position + len(term))
            if term == b"traceback" and lower.startswith(_TRACEBACK, position):
                end = _end_of_traceback(data, data[start:position], end)
            spans.append((start, end))
            position = lower.find(term, max(end, position + 1))
    spans += [_line_around(data, match.start(), match.end()) for match in re.finditer(_SEVERE, data)]
    return sorted(spans)


def _merged(spans: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the spans that are not within an earlier one."""
    last = 0
    for start, end in spans:
        if end > last:
            yield max(start, last), end
            last = end


def _line_around(data: bytes, start: int, end: int) -> tuple[int, int]:
    """Return where the line of a match begins and ends; of a very long line, the part around the match.

    A carriage return ends a line too, since progress bars print one after each of their states.
    """
    low, high = max(0, start - _LINE_BYTES), min(len(data), end + _LINE_BYTES)
    begin = max(data.rfind(b"\n", low, start), data.rfind(b"\r", low, start))
    match = re.compile(rb"[\r\n]").search(data, end, high)
    return (low if begin < 0 else begin + 1), (high if match is None else match.end())


def _end_of_traceback(data: bytes, prefix: bytes, position: int) -> int:
    """Return where a traceback ends: after the first line that is not indented, which names the exception."""
    for _ in range(_TRACEBACK_LINES):
        end = data.find(b"\n", position, position + _LINE_BYTES) + 1
        line = data[position:end] if end else b""
        if not line.startswith(prefix):
            break
        position = end
        if line[len(prefix) : len(prefix) + 1] not in (b" ", b"\t"):
            break
    return position


def _cut_after_line(data: bytes, size: int) -> bytes:
    """Return the first lines that fit; a part of the first line if it does not."""
    if len(data) <= size:
        return data
    return data[: data.rfind(b"\n", 0, size) + 1 or size]


def _cut_before_line(data: bytes, size: int) -> bytes:
    """Return the last lines that fit; a part of the last line if it does not."""
    if len(data) <= size:
        return data
    end = data[len(data) - size :]
    if data[len(data) - size - 1 : len(data) - size] == b"\n":
        return end
    return end[end.find(b"\n") + 1 :] or end
