"""Lines of a run's output with their times, of which some are selected."""

from __future__ import annotations

import bisect
import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from skyrl_modal.dataclass import dataclass
from skyrl_modal.errors import SpecError
from skyrl_modal.protocol.run_folder import OUTPUT_TIMES_FILE

if TYPE_CHECKING:
    from skyrl_modal.backends import Execution

#: Longer lines are divided, so that an output without newlines does not fill the memory.
_MAX_LINE_BYTES = 8 << 20
#: The latest time that a date can express.
_MAX_TIME = datetime(9999, 1, 1, tzinfo=UTC).timestamp()


@dataclass(frozen=True, slots=True)
class OutputIndex:
    """When the parts of an output were written.

    Attributes:
        positions: The positions in the output at which parts begin, sorted.
        times: The time of each part, in seconds since the epoch.
    """

    positions: Sequence[int]
    times: Sequence[float]

    def time_of(self, position: int) -> float | None:
        """Return when the output at a position was written, to a second; None if that is not known.

        Example:
            >>> OutputIndex([0, 10], [100.0, 105.0]).time_of(12)
            105.0
        """
        number = bisect.bisect_right(self.positions, position) - 1
        return None if number < 0 else self.times[number]


def parse_times(content: bytes) -> OutputIndex:
    r"""Return the index in the content of the file with the times. Lines that are not valid are left out.

    Example:
        >>> parse_times(b"0 100.000\n10 105.000\nx\n").positions
        [0, 10]
    """
    positions: list[int] = []
    times: list[float] = []
    for line in content.splitlines():
        match = re.fullmatch(rb"(\d{1,18}) (\d{1,12}\.\d{3})", line)
        if match is None:
            continue
        position, time = int(match[1]), float(match[2])
        # The command could change the file: positions are sorted for the search.
        if time < _MAX_TIME and (not positions or position >= positions[-1]):
            positions.append(position)
            times.append(time)
    return OutputIndex(positions, times)


def read_times(execution: Execution) -> OutputIndex:
    """Return when the output of a run was written; an empty index if the run has not recorded it."""
    try:
        return parse_times(execution.read_file(OUTPUT_TIMES_FILE))
    except FileNotFoundError:
        return OutputIndex((), ())


@dataclass(frozen=True, slots=True, kw_only=True)
class LineFilter:
    """Which lines are shown.

    Attributes:
        pattern: Those in which this expression is found; None for all.
        since: Those that were written since this time, in seconds since the epoch; None for all.
        tail: The number of the last ones; None for all.
        has_timestamps: Whether the time is written before each line.
    """

    pattern: re.Pattern[str] | None = None
    since: float | None = None
    tail: int | None = None
    has_timestamps: bool = False


def compile_pattern(text: str) -> re.Pattern[str]:
    """Return the expression in a text.

    Raises:
        SpecError: It is not valid.
    """
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise SpecError("grep", text, f"it is not a regular expression: {error}") from None


def select_lines(
    pieces: Iterable[bytes],
    wanted: LineFilter,
    times: OutputIndex,
    *,
    end: float = math.inf,
    now: Callable[[], float] | None = None,
) -> Iterator[bytes]:
    """Yield the selected lines of an output, with their newline.

    Args:
        pieces: The output from its beginning, in pieces that may end anywhere.
        wanted: Which lines are selected.
        times: When the output was written.
        end: The size of the output for which ``times`` was read. What follows has the time of its arrival.
        now: Returns the current time; None if the output is not followed.
    """
    kept: deque[bytes] = deque(maxlen=wanted.tail)
    position = 0
    for line in _divide(pieces):
        is_new = now is not None and position >= end
        time = now() if now is not None and is_new else times.time_of(position)
        position += len(line)
        if not _is_selected(line, time, wanted):
            continue
        shown = _with_time(line, time) if wanted.has_timestamps else line
        if wanted.tail is None or is_new:
            while kept:
                yield kept.popleft()
            yield shown
        else:
            kept.append(shown)
    yield from kept


def _divide(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield lines with their newline. The last one may have none."""
    rest = b""
    for piece in pieces:
        lines = (rest + piece).split(b"\n")
        rest = lines.pop()
        yield from (line + b"\n" for line in lines)
        if len(rest) > _MAX_LINE_BYTES:
            yield rest
            rest = b""
    if rest:
        yield rest


def _is_selected(line: bytes, time: float | None, wanted: LineFilter) -> bool:
    if wanted.since is not None and (time is None or time < wanted.since):
        return False
    return wanted.pattern is None or wanted.pattern.search(line.decode("utf-8", "replace").rstrip("\n")) is not None


def _with_time(line: bytes, time: float | None) -> bytes:
    """Return a line after its time in UTC, as ``docker logs --timestamps`` writes it."""
    if time is None:
        text = "-".ljust(len("2026-01-31T12:00:00Z"))
    else:
        text = f"{datetime.fromtimestamp(time, UTC):%Y-%m-%dT%H:%M:%SZ}"
    return f"{text} ".encode() + line
