"""What the server keeps of one run: its metrics in columns, the index of its log, and what does not change any more.

All methods may wait for the run's backend: they are called in threads, by one at a time.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from skyrl_modal.dataclass import dataclass
from skyrl_modal.formats.metrics_rows import FileReader, paused_collection
from skyrl_modal.run.handle import Run
from skyrl_modal.run.kept_logs import list_kept_logs, read_logs
from skyrl_modal.run.metrics import RunFiles
from skyrl_modal.web.columns import MetricColumns, values_of
from skyrl_modal.web.log_lines import BytesSource, LogIndex, LogLine

if TYPE_CHECKING:
    from skyrl_modal.backends import Execution
    from skyrl_modal.formats.metrics_rows import Piece
    from skyrl_modal.formats.rollout import Rollout
    from skyrl_modal.run.index import IndexRecord

#: Seconds in which what was read is not read again: of a run on this machine, and of another backend, where each look
#: is a request or more.
_LOCAL_AGE, _REMOTE_AGE = 0.05, 3.0
#: Seconds after which the output of an active run on another backend is downloaded again.
_REMOTE_LOG_AGE = 10.0
#: New rows, values in them, and lines that are passed on at a time.
_MAX_ROWS, _MAX_VALUES, _MAX_LINES = 500, 50_000, 200
#: Lines at the end of the kept logs that can be read.
_KEPT_LINES = 20_000
#: Curves that are kept after they were sampled.
_MAX_SAMPLED = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What was added to a run since the last look.

    Attributes:
        rows: The newest rows: step, time and values.
        skipped_rows: Number of new rows that are left out.
        lines: The newest lines.
        skipped_lines: Number of new lines that are left out.
    """

    rows: Sequence[Mapping[str, Any]] = ()
    skipped_rows: int = 0
    lines: Sequence[LogLine] = ()
    skipped_lines: int = 0


class _CompactFiles(RunFiles):
    """The files of a run, whose rows are moved to columns after each file.

    Args:
        execution: The run.
    """

    def __init__(self, execution: Execution) -> None:
        super().__init__(execution)
        self.columns = MetricColumns()
        self.new: deque[Piece] = deque(maxlen=_MAX_ROWS)

    def _read(self, path: str, reader: FileReader) -> None:
        super()._read(path, reader)
        self.new.extend(self.columns.take(reader))


class ObservedRun:
    """One run.

    Args:
        record: Its record in the index.

    Attributes:
        run: Its handle.
        is_local: Whether its files are on this machine.
        lock: Held while a method of this class is called.
        sampled: Sampled curves as JSON, by their parameters and the version of the metrics.
        facts: What was found out about a run that has ended.
        has_ended: Whether it had ended when its details were read.
        newest_step: The greatest step that was read; None if there is none.
        rollouts: When its rollouts were read, the rollouts, and the number of those that could not be read.
    """

    def __init__(self, record: IndexRecord) -> None:
        self.run = Run._from_record(record)
        self.is_local = record.backend == "local"
        self.lock = threading.RLock()
        self.sampled: dict[tuple[object, ...], str] = {}
        self.facts: dict[str, Any] = {}
        self.has_ended = False
        self.newest_step: int | None = None
        self.rollouts: tuple[float, Sequence[Rollout], int] | None = None
        self._files = _CompactFiles(self.run._execution)
        self._files_read_at = self._log_read_at = float("-inf")
        self._log = LogIndex(self.run._execution)
        self._seen_version = 0
        self._seen_lines: int | None = None
        self._seen_part = ""
        self._kept: tuple[tuple[int | None, int | None], float, LogIndex] | None = None

    @property
    def bytes(self) -> int:
        """Size in memory, without what is small."""
        rollouts = () if self.rollouts is None else self.rollouts[1]
        return self._files.columns.bytes + sum(2 * (len(each.prompt) + len(each.response)) for each in rollouts)

    def metrics(self) -> MetricColumns:
        """Return the metrics, with what was logged until now or, of another backend, some seconds ago."""
        age = _LOCAL_AGE if self.is_local else _REMOTE_AGE
        if time.monotonic() - self._files_read_at > age:
            with paused_collection():
                self._files.update()
            self._files_read_at = time.monotonic()
            steps = self._files.columns.step_range()
            self.newest_step = None if steps is None else steps[1]
        return self._files.columns

    def log(self) -> LogIndex:
        """Return the output."""
        age = _LOCAL_AGE if self.is_local else _REMOTE_LOG_AGE
        if time.monotonic() - self._log_read_at > age:
            self._log.update()
            self._log_read_at = time.monotonic()
        return self._log

    def kept_log(self, rank: int | None, attempt: int | None) -> LogIndex:
        """Return the end of the kept logs of a rank or an attempt.

        Raises:
            FileNotFoundError: No logs are stored, or not yet.
        """
        wanted = (rank, attempt)
        if self._kept is None or self._kept[0] != wanted or time.monotonic() - self._kept[1] > _REMOTE_LOG_AGE:
            logs = list_kept_logs(self.run._execution, rank=rank, attempt=attempt)
            if not logs:
                raise FileNotFoundError("no logs of this rank and attempt are kept")
            index = LogIndex(BytesSource(b"".join(read_logs(logs, _KEPT_LINES))))
            index.update()
            self._kept = wanted, time.monotonic(), index
        return self._kept[2]

    def keep_sampled(self, key: tuple[object, ...], text: str) -> None:
        """Keep a sampled curve."""
        while len(self.sampled) >= _MAX_SAMPLED:
            del self.sampled[next(iter(self.sampled))]
        self.sampled[key] = text

    def news(self, *, restart: bool = False) -> News:
        """Return what was added since the last call.

        Args:
            restart: Whether to return nothing, and to count from now.
        """
        if restart:
            self._seen_lines = None
        columns = self.metrics()
        pieces = list(self._files.new)
        self._files.new.clear()
        count, self._seen_version = columns.version - self._seen_version, columns.version
        rows: list[Mapping[str, Any]] = []
        lines: list[LogLine] = []
        skipped_lines = 0
        if self._seen_lines is not None:
            rows = _rows(pieces)
        else:
            count = 0
        index = self.log()
        total, seen = index.total, self._seen_lines
        if seen is not None and total < seen:  # the log was replaced
            seen = 0
        if seen is not None:
            lines, skipped_lines = self._new_lines(index, seen, total)
        self._seen_lines = total
        return News(rows=rows, skipped_rows=count - len(rows), lines=lines, skipped_lines=skipped_lines)

    def _new_lines(self, index: LogIndex, seen: int, total: int) -> tuple[list[LogLine], int]:
        """Return the new lines, with the last known one if it has changed, and the number of those left out."""
        first = max(seen, total - _MAX_LINES + 1, 1)
        lines = index.lines(first, total)
        if lines and lines[0].n == seen and lines[0].text == self._seen_part:
            lines = lines[1:]
        if lines:
            self._seen_part = lines[-1].text
        return lines, max(0, first - seen - 1)


def _rows(pieces: Sequence[Piece]) -> list[Mapping[str, Any]]:
    """Return the newest rows, with a limited number of values."""
    rows: list[Mapping[str, Any]] = []
    count = 0
    for piece in reversed(pieces):
        values = values_of(piece)
        count += len(values)
        if rows and count > _MAX_VALUES:
            break
        rows.append({"step": piece[0], "time": piece[1], "values": values})
    return rows[::-1]
