"""The metrics of a run in columns: a fifth of the memory of the rows, and the values of one key without the others."""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
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
    """Rows of one source and attempt with the same keys, in the order in which they were read."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.positions = {key: index for index, key in enumerate(keys)}  # of equal keys the last one, as in a row
        self.steps = array("q")
        self.times = array("d")
        self.values = array("d")
        self.width = len(keys)
        self.is_ascending = True

    def add(self, step: int, time: float, packed: bytes) -> None:
        if self.steps and step <= self.steps[-1]:
            self.is_ascending = False
        self.steps.append(step)
        self.times.append(time)
        self.values.frombytes(packed if sys.byteorder == "little" else _swapped(packed))

    @property
    def bytes(self) -> int:
        return 8 * (2 * len(self.steps) + len(self.values))

    def column(self, key: str) -> array[float]:
        return self.values[self.positions[key] :: self.width]


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
        self._blocks: dict[str, dict[Group, dict[tuple[str, ...], _Block]]] = {}

    def take(self, reader: FileReader) -> Sequence[Piece]:
        """Move the rows of a reader to the columns. Return them."""
        pieces = reader.pieces
        reader.pieces = []
        block, table = None, None
        for piece in pieces:
            if piece[2] is not table or block is None:
                table = piece[2]
                blocks = self._blocks.setdefault(table.source, {}).setdefault(reader.group, {})
                block = blocks.get(table.keys)
                if block is None:
                    block = blocks[table.keys] = _Block(table.keys)
            block.add(piece[0], piece[1], piece[3])
        self.version += len(pieces)
        return pieces

    @property
    def bytes(self) -> int:
        """Size of the columns in memory."""
        return sum(block.bytes for *_, block in self._all())

    def _all(self) -> Iterator[tuple[str, Group, _Block]]:
        for source, groups in self._blocks.items():
            for group in sorted(groups):
                for block in groups[group].values():
                    yield source, group, block

    def names(self) -> list[str]:
        """Return the names of the metrics, sorted."""
        return sorted({key for *_, block in self._all() for key in block.positions} - {STEP, TIME})

    def _limits(self, source: str) -> dict[Group, float]:
        """Return the last step of each attempt that no later attempt has replaced."""
        limits: dict[Group, float] = {}
        limit = float("inf")
        for group in sorted(self._blocks[source], reverse=True):
            limits[group] = limit
            limit = min(limit, *(min(block.steps) for block in self._blocks[source][group].values()))
        return limits

    def _parts(self, key: str) -> Iterator[list[tuple[_Block, float]]]:
        """Yield for each source and attempt the blocks with a key, and the last step that counts."""
        for source, groups in self._blocks.items():
            limits = self._limits(source) if len(groups) > 1 else dict.fromkeys(groups, float("inf"))
            for group in sorted(groups):
                found = [(block, limits[group]) for block in groups[group].values() if key in block.positions]
                if found:
                    yield found

    def curve(self, key: str) -> Curve:
        """Return the values of a key; an empty curve for another name."""
        parts = list(self._parts(key))
        if not parts:
            return Curve(array("q"), array("d"), array("d"))
        if len(parts) == 1 and len(parts[0]) == 1 and parts[0][0][0].is_ascending:
            block, limit = parts[0][0]
            end = len(block.steps) if limit == float("inf") else bisect_right(block.steps, limit)
            return Curve(block.steps[:end], block.times[:end], block.column(key)[:end])
        found: dict[int, tuple[float, float]] = {}
        for blocks in parts:
            rows = [
                row
                for block, limit in blocks
                for row in zip(block.times, block.steps, block.column(key), strict=True)
                if row[1] <= limit
            ]
            if len(blocks) > 1 or not blocks[0][0].is_ascending:
                rows.sort(key=lambda row: row[0])  # several processes, or several calls for a step: the last one counts
            for time, step, value in rows:
                found[step] = time, value
        steps = sorted(found)
        times, values = (array("d", (found[step][part] for step in steps)) for part in (0, 1))
        return Curve(array("q", steps), times, values)

    def last_values(self) -> dict[str, float]:
        """Return the value of each key at its last step."""
        newest: dict[str, tuple[int, float, float]] = {}
        for source, groups in self._blocks.items():
            limits = self._limits(source)
            for group, blocks in groups.items():
                for block in blocks.values():
                    _update_newest(newest, block, limits[group])
        return {key: value for key, (_, _, value) in sorted(newest.items()) if key not in (STEP, TIME)}

    def step_range(self) -> tuple[int, int] | None:
        """Return the first and the last step; None without rows. Steps that a later attempt has replaced count too."""
        steps = [(min(block.steps), max(block.steps)) for *_, block in self._all() if block.steps]
        return (min(first for first, _ in steps), max(last for _, last in steps)) if steps else None

    def attempts(self) -> list[AttemptSteps]:
        """Return what each attempt has logged, in their order. Starts of one attempt in several containers are one."""
        blocks: dict[int, list[_Block]] = {}
        for _, group, block in self._all():
            blocks.setdefault(group[0], []).append(block)
        return [
            AttemptSteps(
                attempt=attempt,
                first_step=min(min(block.steps) for block in found),
                last_step=max(max(block.steps) for block in found),
                started_at=min(min(block.times) for block in found),
                ended_at=max(max(block.times) for block in found),
            )
            for attempt, found in sorted(blocks.items())
        ]


def _update_newest(newest: dict[str, tuple[int, float, float]], block: _Block, limit: float) -> None:
    """Replace the newest values by those of the last row of a block that counts, if it is newer."""
    candidates: Iterable[int] = (len(block.steps) - 1,)
    if not block.is_ascending or block.steps[-1] > limit:
        candidates = (index for index, step in enumerate(block.steps) if step <= limit)
    best = max(candidates, key=lambda index: (block.steps[index], block.times[index]), default=None)
    if best is None:
        return
    step, time = block.steps[best], block.times[best]
    for key, position in block.positions.items():
        known = newest.get(key)
        if known is None or (known[0], known[1]) <= (step, time):
            newest[key] = step, time, block.values[best * block.width + position]


def _swapped(packed: bytes) -> bytes:
    count = len(packed) // 8
    return struct.pack(f"={count}d", *struct.unpack(f"<{count}d", packed))


def values_of(piece: Piece) -> dict[str, float]:
    """Return the values of one logged row."""
    values = struct.unpack(f"<{len(piece[3]) // 8}d", piece[3])
    return {key: value for key, value in zip(piece[2].keys, values, strict=True) if key not in (STEP, TIME)}
