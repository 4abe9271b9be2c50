"""The lines of a log that explain most about a failure without a rule."""

from __future__ import annotations

import re
from collections.abc import Sequence

from skyrl_modal.dataclass import dataclass
from skyrl_modal.findings import Evidence
from skyrl_modal.skyrl.failures.line_context import MAX_LINE
from skyrl_modal.skyrl.failures.log_line import LogLine, parse_line
from skyrl_modal.skyrl.failures.log_scan import ScannedLog
from skyrl_modal.skyrl.failures.rule import OUTPUT_LOG

#: The last line of a traceback.
_EXCEPTION = re.compile(
    r"(?P<type>(?:[A-Za-z_]\w{0,80}\.){0,10}[A-Za-z_]\w{0,80}(?:Error|Exception|Exit|Interrupt|Failure))"
    r"(?:\([\w.]{0,80}\))?(?::|$)"
)
_ERROR = re.compile(r"(?i)\b(?:error|fatal|failed|failure|killed|aborted|exception|cannot|denied|refused|not found)\b")
#: Lines of a log, and of all logs, that are shown.
_MAX_LINES, _MAX_TOTAL = 3, 15


@dataclass(frozen=True, slots=True)
class LastException:
    """The last exception of a log.

    Attributes:
        type: Its type, with its module.
        offset: Position of its line in the log, in bytes.
    """

    type: str
    offset: int


def find_last_exception(log: ScannedLog) -> LastException | None:
    """Return the last exception at the end of a log; None if there is none."""
    offset = log.size - len(log.tail)
    last = None
    for raw in log.tail.split(b"\n"):
        line = parse_line(raw[:MAX_LINE])
        match = None if line.is_harmless else _EXCEPTION.match(line.message)
        if match is not None:
            last = LastException(match["type"], offset)
        offset += len(raw) + 1
    return last


def find_informative_lines(logs: Sequence[ScannedLog]) -> tuple[Evidence, ...]:
    """Return the most informative lines of each log: exceptions, then errors, and the last line of the output.

    The logs are in the order of their most informative line. Of many logs, only the first ones have lines.
    """
    rated = [lines for log in logs if (lines := _rated_lines(log))]
    rated.sort(key=lambda lines: -max(rating for rating, _ in lines))
    return tuple(evidence for lines in rated for _, evidence in lines)[:_MAX_TOTAL]


def _rated_lines(log: ScannedLog) -> list[tuple[int, Evidence]]:
    raw_lines = log.tail.split(b"\n")
    first = log.lines - len(raw_lines) + 2
    rated = []
    for number, raw in enumerate(raw_lines):
        line = parse_line(raw.rstrip(b"\r").rpartition(b"\r")[2][:MAX_LINE])
        if line.message.strip():
            rated.append((_informativeness(line), first + number, line))
    best = sorted((item for item in rated if item[0] > 0), key=lambda item: (-item[0], -item[1]))[:_MAX_LINES]
    if not best and rated and log.source.name == OUTPUT_LOG:
        best = rated[-1:]
    source = log.source
    return [
        (
            rating,
            Evidence(file=source.name, line=number, text=line.text.strip(), rank=source.rank, attempt=source.attempt),
        )
        for rating, number, line in sorted(best, key=lambda item: item[1])
    ]


def _informativeness(line: LogLine) -> int:
    """Return how much a line explains."""
    if line.is_indented or line.message.startswith("+"):
        return 0
    if line.message.startswith("Training failed at step "):  # skyrl/train/utils/tracking.py
        return 4
    if _EXCEPTION.match(line.message) is not None and not line.is_harmless:
        return 3
    if line.level in ("ERROR", "CRITICAL", "FATAL"):
        return 2
    return 1 if _ERROR.search(line.message) is not None and not line.is_harmless else 0
