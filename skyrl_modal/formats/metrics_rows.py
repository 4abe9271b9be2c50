"""Read the metrics files of a run, and merge the rows of its processes and attempts. docs/metrics.md has the format.

Other users of a volume may have written the files: what is not as ``metrics_writer`` writes it is skipped and counted.
"""

from __future__ import annotations

import binascii
import gc
import json
import struct
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

from skyrl_modal.dataclass import dataclass
from skyrl_modal.formats.metrics_steps import FILE_NAME
from skyrl_modal.formats.metrics_writer import MAX_KEY_LENGTH, MAX_KEYS, MAX_STEP, MAX_TABLES

TYPE_CHECKING = False  # the same as in typing, whose import takes time

if TYPE_CHECKING:
    from typing import Any

#: Keys of each row, which metrics cannot have.
STEP, TIME = "step", "time"
#: Bytes of a line, of a file and of all files together, above which nothing is read.
MAX_LINE_BYTES, MAX_FILE_BYTES, MAX_TOTAL_BYTES = 8 << 20, 16 << 20, 2 << 30
#: A time in seconds that is later than any real one.
_MAX_TIME = 1e12
#: Keys of the step in lines of other programs, the first of which is used.
STEP_KEYS = ("step", "global_step", "trainer/global_step", "train/global_step", "_step", "iteration")
_TIME_KEYS = ("time", "timestamp", "_timestamp")


@dataclass(frozen=True, slots=True)
class KeyTable:
    """The keys of rows.

    Attributes:
        source: What logged the rows.
        keys: Their keys, in the order of the values.
        has_own_keys: Whether a key is one that each row has itself.
    """

    source: str
    keys: tuple[str, ...]
    has_own_keys: bool = False

    @classmethod
    def of(cls, source: str, keys: Iterable[str]) -> KeyTable:
        """Return a table. Characters that are not Unicode are replaced."""
        names = tuple(key.encode("utf-8", "replace").decode() for key in keys)
        return cls(source, names, STEP in names or TIME in names)


#: One row as it was logged: step, time, keys, and the values as little-endian float64.
if TYPE_CHECKING:
    Piece = tuple[int, float, KeyTable, bytes]


class FileReader:
    """Reads one file while it grows.

    Attributes:
        group: Attempt, and start of its container in milliseconds. Rows of a later group replace earlier ones.
        pieces: The rows that were read.
        skipped: Number of lines that are not as they should be.
        offset: Number of bytes that were read. The rest of a line that has not ended is read again.
    """

    def __init__(self, group: tuple[int, int] = (1, 0)) -> None:
        self.group = group
        self.pieces: list[Piece] = []
        self.skipped = 0
        self.offset = 0
        self._tables: list[KeyTable] = []
        self._sizes: list[int] = []

    def feed(self, data: bytes) -> None:
        """Read further bytes, from ``offset`` on."""
        end = data.rfind(b"\n") + 1
        self.offset += end
        tables, sizes, add = self._tables, self._sizes, self.pieces.append
        decode = binascii.a2b_base64
        for line in data[:end].split(b"\n"):
            # {"table":0,"step":3,"time":1.5,"f64":"...","values":[...]}
            parts = line.split(b'"', 11)
            try:
                number, step, time = int(parts[2][1:-1]), int(parts[4][1:-1]), float(parts[6][1:-1])
                packed = decode(parts[9])
                if (
                    len(packed) == sizes[number]
                    and number >= 0 <= step <= MAX_STEP
                    and 0 <= time <= _MAX_TIME
                    and parts[7] == b"f64"
                    and line[-2:] == b"]}"
                ):
                    add((step, time, tables[number], packed))
                    continue
            except (ValueError, IndexError):  # it is no row
                pass
            if line and not self._read_table(line):
                self.skipped += 1

    def _read_table(self, line: bytes) -> bool:
        """Read the line of a table. Return whether it is one."""
        record = read_object(line)
        if record is None or len(self._tables) >= MAX_TABLES + 1:
            return False
        number = record.get("table")
        if isinstance(number, bool) or number != len(self._tables):
            return False
        source, keys = record.get("source"), record.get("keys")
        if not isinstance(source, str) or not isinstance(keys, list) or not 0 < len(keys) <= MAX_KEYS:
            return False
        if not all(isinstance(key, str) and len(key) <= MAX_KEY_LENGTH for key in keys):
            return False
        self._tables.append(KeyTable.of(source, keys))
        self._sizes.append(8 * len(keys))
        return True


class JsonLinesReader:
    """Reads the lines of another program, such as ``metrics.jsonl``: objects with numbers, and a step.

    The step is the first of ``STEP_KEYS`` that a line has, else the number of the line. Other values are left out.

    Attributes:
        pieces: The rows that were read.
        skipped: Number of lines that are no such objects.
    """

    def __init__(self) -> None:
        self.group = (1, 0)
        self.pieces: list[Piece] = []
        self.skipped = 0
        self._tables: dict[tuple[str, ...], KeyTable] = {}

    def feed(self, lines: Iterable[bytes]) -> None:
        """Read lines."""
        for number, line in enumerate(lines):
            record = read_object(line) if line.strip() else {}
            if record is None or (record and not self._add(record, number)):
                self.skipped += 1

    def _add(self, record: dict[str, Any], number: int) -> bool:
        own = next((key for key in STEP_KEYS if _is_number(record.get(key))), None)
        step = number if own is None else record[own]
        if not 0 <= step <= MAX_STEP or step != int(step):
            return False
        time = next((float(record[key]) for key in _TIME_KEYS if _is_number(record.get(key))), 0.0)
        if not 0 <= time <= _MAX_TIME:
            time = 0.0
        values = {key: float(value) for key, value in record.items() if key not in (own, *_TIME_KEYS) and _fits(value)}
        names = tuple(name for name in values if len(name) <= MAX_KEY_LENGTH)[:MAX_KEYS]
        if names:
            table = self._tables.setdefault(names, KeyTable.of("file", names))
            packed = struct.pack(f"<{len(names)}d", *(values[name] for name in names))
            self.pieces.append((int(step), time, table, packed))
        return True


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value and _fits(value)


def _fits(value: object) -> bool:
    """Return whether a value is a number that float can represent."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**1000)


def read_object(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object of a line; None if it is none."""
    if len(line) > MAX_LINE_BYTES:
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


class MergedRows:
    """The rows of a run, one for each step, sorted by step.

    A later attempt trains some steps again. For each source, its rows replace those of earlier attempts from its first
    step on. At this first step itself, keys that only the earlier row has are kept: SkyRL logs an evaluation at the
    step from which it continues. Rows of one step in one attempt are merged.

    Args:
        readers: The files.
    """

    def __init__(self, readers: Iterable[FileReader | JsonLinesReader] = ()) -> None:
        groups: dict[tuple[int, int], dict[str, list[Piece]]] = {}
        for reader in readers:
            sources = groups.setdefault(reader.group, {})
            for source, pieces in _by_source(reader.pieces):
                sources.setdefault(source, []).extend(pieces)
        merged: dict[str, dict[int, Sequence[Piece]]] = {}
        for group in sorted(groups):
            for source, pieces in groups[group].items():
                merged[source] = _continue(merged.get(source, {}), pieces)
        steps: dict[int, Sequence[Piece]] = {}
        for rows in merged.values():
            if not steps:
                steps = rows
                continue
            for step, found in rows.items():
                steps[step] = [*steps.get(step, ()), *found]
        self._rows = [steps[step] for step in sorted(steps)]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[dict[str, float]]:
        return map(to_row, self._rows)

    def __getitem__(self, index: int) -> dict[str, float]:
        return to_row(self._rows[index])

    @property
    def pieces(self) -> Sequence[Sequence[Piece]]:
        """The parts of each row."""
        return self._rows

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of all rows, sorted, without step and time."""
        tables = {id(piece[2]): piece[2] for row in self._rows for piece in row}
        return tuple(sorted({key for table in tables.values() for key in table.keys} - {STEP, TIME}))

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Return the steps at which a key was logged, and its values."""
        found: dict[int, float] = {}
        blocks = [block for block in self._blocks if key in block.table.keys]
        if len(blocks) == 1 and not self._merged:
            return blocks[0].steps, blocks[0].column(key)
        for block in blocks:
            found.update(zip(block.steps, block.column(key), strict=True))
        for row in self._merged:
            values = to_row(row)
            if key in values:
                found[row[-1][0]] = values[key]
        steps = sorted(found)
        return steps, [found[step] for step in steps]

    @cached_property
    def _merged(self) -> Sequence[Sequence[Piece]]:
        """The rows that have several parts."""
        return [row for row in self._rows if len(row) > 1]

    @cached_property
    def _blocks(self) -> Sequence[_Block]:
        """The other rows, by their tables."""
        by_table: dict[int, list[Piece]] = {}
        for row in self._rows:
            if len(row) == 1:
                by_table.setdefault(id(row[0][2]), []).append(row[0])
        return [_Block(pieces) for pieces in by_table.values()]


class _Block:
    """Rows with the same keys.

    Attributes:
        table: Their keys.
        steps: Their steps, in ascending order.
    """

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.table = pieces[0][2]
        self.steps = [piece[0] for piece in pieces]
        self._values = array("d", b"".join([piece[3] for piece in pieces]))
        if sys.byteorder == "big":
            self._values.byteswap()

    def column(self, key: str) -> list[float]:
        """Return the values of a key."""
        keys = self.table.keys
        position = max(index for index, name in enumerate(keys) if name == key)  # the last one, as in a dict
        return self._values[position :: len(keys)].tolist()


def _by_source(pieces: Sequence[Piece]) -> Iterator[tuple[str, Sequence[Piece]]]:
    """Yield the rows of each source of a file."""
    sources = {id(piece[2]): piece[2].source for piece in pieces}
    names = sorted(set(sources.values()))
    if len(names) == 1:
        yield names[0], pieces
        return
    for name in names:
        yield name, [piece for piece in pieces if piece[2].source == name]


def _continue(rows: dict[int, Sequence[Piece]], pieces: Sequence[Piece]) -> dict[int, Sequence[Piece]]:
    """Return rows by step, and those of the next attempt instead of what it has trained again."""
    added: dict[int, Sequence[Piece]] = {piece[0]: (piece,) for piece in pieces}
    if len(added) < len(pieces):  # several processes, or several calls for a step
        added = {}
        for piece in sorted(pieces, key=lambda piece: piece[1]):
            added[piece[0]] = [*added.get(piece[0], ()), piece]
    first = min(added)
    kept = {step: row for step, row in rows.items() if step <= first}
    if first in kept:
        added[first] = [*kept.pop(first), *added[first]]
    return {**kept, **added}


def to_row(pieces: Sequence[Piece]) -> dict[str, float]:
    """Return a row as a dict. A later part replaces equal keys of an earlier one."""
    step, time, table, packed = pieces[-1]
    row: dict[str, float] = {STEP: step, TIME: time}
    has_own_keys = False
    for _, _, table, packed in pieces:  # the names are those of the last part
        row.update(zip(table.keys, _unpack(packed), strict=True))
        has_own_keys = has_own_keys or table.has_own_keys
    if has_own_keys:
        row[STEP], row[TIME] = step, time
    return row


def _unpack(packed: bytes) -> Sequence[float]:
    unpacked = _UNPACKERS.get(len(packed))
    if unpacked is None:
        unpacked = _UNPACKERS[len(packed)] = struct.Struct(f"<{len(packed) // 8}d").unpack
    return unpacked(packed)


_UNPACKERS: dict[int, Any] = {}


def group_of_file(name: str) -> tuple[int, int] | None:
    """Return attempt and start of a file by its name; None if it is no metrics file."""
    match = FILE_NAME.fullmatch(name)
    return None if match is None else (int(match[1]), int(match[2]))


class paused_collection:  # a context manager, used like a function
    """Disable the garbage collector: rows contain no cycles, and each collection would visit all of them."""

    def __enter__(self) -> None:
        self._was_enabled = gc.isenabled()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        if self._was_enabled:
            gc.enable()
