"""The metrics of a run in columns: a fifth of the memory of the rows, and the values of one key without the others."""

from __future__ import annotations

import itertools
import math
import operator
import struct
import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from skyrl_modal.dataclass import dataclass
from skyrl_modal.formats.metrics_rows import STEP, TIME

if TYPE_CHECKING:
    from skyrl_modal.formats.metrics_rows import FileReader, Piece

#: Attempt, and start of its container in milliseconds.
Group = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Curve:
    """The values of one key, by ascending step.

    Attributes:
        steps: The steps.
        times: When they were logged: seconds since the epoch.
        values: The values.
    """

    steps: array[int]
    times: array[float]
    values: array[float]

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptSteps:
    """What one attempt has logged.

    Attributes:
        attempt: Number of the attempt, from 1.
        first_step: Its first step.
        last_step: Its last step.
        started_at: Time of its first row: seconds since the epoch.
        ended_at: Time of its last row.
    """

    attempt: int
    first_step: int
    last_step: int
    started_at: float
    ended_at: float


class _Block:
    """Rows of one source and attempt with the same keys, one for each step."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.steps = array("q")
        self.times = array("d")
        self.columns = {key: array("d") for key in keys}
        self._keys = keys
        self._sorted = 0  # number of rows before the first one that may be at a wrong position

    def add(self, pieces: Sequence[Piece]) -> None:
        """Add rows with these keys. Of several rows of a step, that with the latest time is kept."""
        end = len(self.steps)
        steps = array("q", [piece[0] for piece in pieces])
        self.steps.extend(steps)
        self.times.extend([piece[1] for piece in pieces])
        values = array("d", b"".join([piece[3] for piece in pieces]))
        if sys.byteorder == "big":
            values.byteswap()
        for key, position in {key: position for position, key in enumerate(self._keys)}.items():
            self.columns[key].extend(values[position :: len(self._keys)])  # of equal keys the last one, as in a row
        if (end and steps[0] <= self.steps[end - 1]) or any(map(operator.le, steps[1:], steps)):
            self._sorted = min(self._sorted, bisect_left(self.steps, min(steps), 0, min(end, self._sorted)))
        elif self._sorted == end:
            self._sorted = len(self.steps)

    def sort(self) -> None:
        """Sort the rows, and remove those of equal steps. The files of a process are not read in their order."""
        begin, count = self._sorted, len(self.steps)
        if begin == count:
            return
        rows = sorted(range(begin, count), key=lambda row: (self.steps[row], self.times[row]))
        kept = [row for row, after in itertools.pairwise(rows) if self.steps[row] != self.steps[after]] + rows[-1:]
        self.steps[begin:] = array("q", [self.steps[row] for row in kept])
        for column in (self.times, *self.columns.values()):
            column[begin:] = array("d", [column[row] for row in kept])
        self._sorted = len(self.steps)

    @property
    def bytes(self) -> int:
        """Size of the columns."""
        return 8 * len(self.steps) * (2 + len(self.columns))


class MetricColumns:
    """The rows of a run, read from the pieces that a ``FileReader`` finds.

    Attempts are merged like ``MergedRows`` does it: for each source, the rows of a later attempt replace those of
    earlier ones from its first step on, except for keys that only the earlier row of that step has.

    Attributes:
        version: Number that changes with each added row.

    Example:
        >>> columns = MetricColumns()
        >>> columns.names()
        []
    """

    def __init__(self) -> None:
        self.version = 0
        self._is_sorted = True
        self._seen: dict[tuple[str, Group], int] = {}
        self._blocks: dict[str, dict[Group, dict[tuple[str, ...], _Block]]] = {}

    def take(self, reader: FileReader) -> Sequence[Piece]:
        """Move the rows of a reader to the columns. Return them."""
        pieces = reader.pieces
        reader.pieces = []
        for table, same in itertools.groupby(pieces, lambda piece: piece[2]):
            self._seen.setdefault((table.source, reader.group), len(self._seen))
            blocks = self._blocks.setdefault(table.source, {}).setdefault(reader.group, {})
            block = blocks.get(table.keys)
            if block is None:
                block = blocks[table.keys] = _Block(table.keys)
            block.add(list(same))
        self.version += len(pieces)
        self._is_sorted = False
        return pieces

    def _sort(self) -> None:
        if not self._is_sorted:
            for *_, block in self._all():
                block.sort()
            self._is_sorted = True

    @property
    def bytes(self) -> int:
        """Size of the columns in memory."""
        return sum(block.bytes for *_, block in self._all())

    def _sources(self) -> list[tuple[str, dict[Group, dict[tuple[str, ...], _Block]]]]:
        """Return the rows by source. Of equal keys of a step, those of the last source count, as in ``MergedRows``."""
        return sorted(self._blocks.items(), key=lambda item: (min(item[1]), self._seen[item[0], min(item[1])]))

    def _all(self) -> Iterator[tuple[str, Group, _Block]]:
        for source, groups in self._sources():
            for group in sorted(groups):
                for block in groups[group].values():
                    yield source, group, block

    def names(self) -> list[str]:
        """Return the names of the metrics, sorted."""
        return sorted({key for *_, block in self._all() for key in block.columns} - {STEP, TIME})

    def _limits(self, source: str) -> dict[Group, float]:
        """Return the last step of each attempt that no later attempt has replaced."""
        limits: dict[Group, float] = {}
        limit = math.inf
        for group in sorted(self._blocks[source], reverse=True):
            limits[group] = limit
            limit = min(limit, *(block.steps[0] for block in self._blocks[source][group].values()))
        return limits

    def _parts(self, key: str) -> Iterator[list[tuple[_Block, int]]]:
        """Yield for each source and attempt the blocks with a key, and the number of their rows that count."""
        for source, groups in self._sources():
            limits = self._limits(source)
            for group in sorted(groups):
                blocks = [block for block in groups[group].values() if key in block.columns]
                if blocks:
                    yield [(block, bisect_right(block.steps, limits[group])) for block in blocks]

    def curve(self, key: str) -> Curve:
        """Return the values of a key; an empty curve for another name."""
        self._sort()
        parts = list(self._parts(key))
        if not parts:
            return Curve(array("q"), array("d"), array("d"))
        if len(parts) == 1 and len(parts[0]) == 1:
            block, end = parts[0][0]
            return Curve(block.steps[:end], block.times[:end], block.columns[key][:end])
        found: dict[int, tuple[float, float]] = {}
        for blocks in parts:
            rows = [
                row
                for block, end in blocks
                for row in zip(block.times[:end], block.steps[:end], block.columns[key][:end], strict=True)
            ]
            if len(blocks) > 1:
                rows.sort(key=lambda row: row[0])  # the last one of a step counts
            for time, step, value in rows:
                found[step] = time, value
        steps = sorted(found)
        times, values = (array("d", (found[step][part] for step in steps)) for part in (0, 1))
        return Curve(array("q", steps), times, values)

    def last_values(self) -> dict[str, float]:
        """Return the value of each key at its last step."""
        self._sort()
        newest: dict[str, tuple[tuple[int, int, float], float]] = {}
        number = 0
        for source, groups in self._sources():
            limits = self._limits(source)
            for group in sorted(groups):
                number += 1
                for block in groups[group].values():
                    row = bisect_right(block.steps, limits[group]) - 1
                    for key, values in block.columns.items() if row >= 0 else ():
                        found = (block.steps[row], number, block.times[row]), values[row]
                        newest[key] = max(newest.get(key, found), found, key=lambda item: item[0])
        return {key: value for key, (_, value) in sorted(newest.items()) if key not in (STEP, TIME)}

    def step_range(self) -> tuple[int, int] | None:
        """Return the first and the last step; None without rows. Steps that a later attempt has replaced count too."""
        self._sort()
        blocks = [block for *_, block in self._all()]
        return (min(block.steps[0] for block in blocks), max(block.steps[-1] for block in blocks)) if blocks else None

    def attempts(self) -> list[AttemptSteps]:
        """Return what each attempt has logged, in their order. Starts of one attempt in several containers are one."""
        self._sort()
        blocks: dict[int, list[_Block]] = {}
        for _, group, block in self._all():
            blocks.setdefault(group[0], []).append(block)
        return [
            AttemptSteps(
                attempt=attempt,
                first_step=min(block.steps[0] for block in found),
                last_step=max(block.steps[-1] for block in found),
                started_at=min(min(block.times) for block in found),
                ended_at=max(max(block.times) for block in found),
            )
            for attempt, found in sorted(blocks.items())
        ]


def values_of(piece: Piece) -> dict[str, float]:
    """Return the values of one logged row."""
    values = struct.unpack(f"<{len(piece[3]) // 8}d", piece[3])
    return {key: value for key, value in zip(piece[2].keys, values, strict=True) if key not in (STEP, TIME)}
