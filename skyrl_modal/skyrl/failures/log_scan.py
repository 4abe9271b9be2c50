"""The search for known failures in one log, in bounded time and memory.

Texts are searched for in blocks, which takes a small part of the time of a regular expression. Only lines with one of
them are parsed.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import cache

from skyrl_modal.dataclass import dataclass
from skyrl_modal.skyrl.failures.line_context import MAX_LINE, LineContext, line_at
from skyrl_modal.skyrl.failures.log_line import LogLine, parse_line
from skyrl_modal.skyrl.failures.quoted_text import QuotedText
from skyrl_modal.skyrl.failures.rule import EXCEPTION, OUTPUT_LOG, FailureRule, LogSource

#: Bytes that are searched at a time, and bytes at the end of a log that are kept.
BLOCK, TAIL = 4 << 20, 128 << 10
#: Lines with one text that are parsed in a block, and matches of a rule that are kept from the beginning and the end.
_MAX_LINES, _MAX_FIRST, _MAX_LAST = 200, 5, 20
#: Lines of a rule in a block, from its beginning and its end, before which the log is read.
_MAX_CONTEXTS = 8
#: What a trainer prints after each step (Timer, skyrl/train/utils/utils.py, August 2026).
_STEP_END = b"Finished: 'step'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A line that shows a known failure.

    Attributes:
        rule: The rule.
        source: The log.
        line: Number of the line, from 1.
        offset: Position of the line in the log, in bytes.
        text: The line.
        values: Groups of the rule's pattern.
        time: When it was written, by this line or one before it; None if that is not known.
    """

    rule: FailureRule
    source: LogSource
    line: int
    offset: int
    text: str
    values: dict[str, str]
    time: datetime | None


@dataclass(slots=True)
class ScannedLog:
    """What was found in a log.

    Attributes:
        source: The log.
        hits: Lines that show known failures.
        step_ends: Position and time of the ends of training steps.
        size: Its size in bytes.
        lines: Number of its lines.
        tail: Its end.
    """

    source: LogSource
    hits: list[Hit]
    step_ends: list[tuple[int, datetime | None]]
    size: int = 0
    lines: int = 0
    tail: bytes = b""


@dataclass(frozen=True, slots=True)
class _Match:
    """A line that matches the pattern of a rule."""

    rule: FailureRule
    begin: int
    line: LogLine
    match: re.Match[str]


def scan_log(source: LogSource, rules: Sequence[FailureRule], year: int = 2000) -> ScannedLog:
    """Search a log for known failures.

    Args:
        source: The log.
        rules: The rules.
        year: The year of its beginning, for times without one.
    """
    result = ScannedLog(source, [], [])
    by_term: dict[bytes, list[FailureRule]] = {}
    for rule in rules:
        if any(fnmatch.fnmatchcase(source.name, pattern) for pattern in rule.files):
            for term in rule.terms:
                by_term.setdefault(term.encode(), []).append(rule)
    quotes = QuotedText()
    is_continued = False
    for block in _blocks(source.chunks):
        quotes.read(block)
        _scan_block(result, block, by_term, quotes, year, is_continued=is_continued)
        result.size += len(block)
        result.lines += block.count(b"\n")
        result.tail = (result.tail + block[-TAIL:])[-TAIL:]
        is_continued = not block.endswith((b"\n", b"\r"))
    return result


def _blocks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield blocks that end at the end of a line, except for lines that are longer than a block."""
    parts: list[bytes] = []
    size = 0
    for chunk in chunks:
        for start in range(0, len(chunk), BLOCK):
            part = chunk[start : start + BLOCK]
            parts.append(part)
            size += len(part)
            if size >= BLOCK:
                data = b"".join(parts)
                end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1 or len(data)
                yield data[:end]
                parts, size = [data[end:]], len(data) - end
    if size:
        yield b"".join(parts)


def _scan_block(
    result: ScannedLog,
    block: bytes,
    by_term: dict[bytes, list[FailureRule]],
    quotes: QuotedText,
    year: int,
    *,
    is_continued: bool,
) -> None:
    """Add what is found in a block."""
    for position in _lines_with(block, _STEP_END):
        begin, end = line_at(block, position, len(_STEP_END))
        result.step_ends.append((result.size + begin, parse_line(block[begin:end], year).time))
    matches: dict[str, dict[int, _Match]] = {}
    for term, rules in by_term.items():
        for position in _lines_with(block, term):
            begin, end = line_at(block, position, len(term))
            if begin < 0 or (begin == 0 and is_continued):  # the beginning of the line is not in the block
                continue
            line = parse_line(block[begin:end], year)
            if line.is_indented or quotes.contains(begin, line.process):
                continue
            for rule in rules:
                match = _compiled(rule.pattern).match(line.message)
                if match is not None and (rule.any_level or not line.is_harmless):
                    matches.setdefault(rule.code, {})[begin] = _Match(rule, begin, line, match)
    for of_rule in matches.values():
        in_order = [of_rule[begin] for begin in sorted(of_rule)]
        if len(in_order) > 2 * _MAX_CONTEXTS:
            in_order = in_order[:_MAX_CONTEXTS] + in_order[-_MAX_CONTEXTS:]
        _keep(result, [hit for match in in_order if (hit := _to_hit(result, block, match, year)) is not None])


def _keep(result: ScannedLog, found: Sequence[Hit]) -> None:
    """Add hits of a rule, of which the first and the last ones are kept."""
    codes = {hit.rule.code for hit in found}
    hits = [*(hit for hit in result.hits if hit.rule.code in codes), *found]
    if len(hits) > _MAX_FIRST + _MAX_LAST:
        hits = hits[:_MAX_FIRST] + hits[-_MAX_LAST:]
    result.hits = [hit for hit in result.hits if hit.rule.code not in codes] + hits


def _lines_with(block: bytes, term: bytes) -> Iterator[int]:
    """Yield positions of a text, one for each line: the first ones, and the last ones of the block."""
    position = block.find(term)
    for _ in range(_MAX_LINES):
        if position < 0:
            return
        yield position
        end = block.find(b"\n", position)
        position = -1 if end < 0 else block.find(term, end)
    first = position
    last: list[int] = []
    position = block.rfind(term)
    while position >= first >= 0 and len(last) < _MAX_LINES:
        last.append(position)
        start = block.rfind(b"\n", 0, position)
        position = -1 if start < 0 else block.rfind(term, 0, start)
    yield from reversed(last)


def _to_hit(result: ScannedLog, block: bytes, found: _Match, year: int) -> Hit | None:
    """Return the hit of a line; None if the lines before it show that the failure was handled."""
    rule, line = found.rule, found.line
    context = LineContext(block, found.begin, line.process, year)
    if context.is_handled or (rule.context and re.search(rule.context, context.traceback) is None):
        return None
    return Hit(
        rule=rule,
        source=result.source,
        line=result.lines + block.count(b"\n", 0, found.begin) + 1,
        offset=result.size + found.begin,
        text=line.text.rstrip()[:MAX_LINE],
        values={name: value or "" for name, value in found.match.groupdict().items()},
        time=line.time or context.time,
    )


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(f"{EXCEPTION}(?:{pattern})")


def is_output(source: LogSource) -> bool:
    """Return whether a log is the output of the command."""
    return source.name == OUTPUT_LOG
