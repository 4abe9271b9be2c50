"""The metrics of a run: rows by step, read from the files that its processes write."""

from __future__ import annotations

import posixpath
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from skyrl_modal.errors import SpecError, translate_system_errors
from skyrl_modal.formats.metrics_rows import (
    MAX_FILE_BYTES,
    MAX_TOTAL_BYTES,
    FileReader,
    JsonLinesReader,
    MergedRows,
    group_of_file,
    paused_collection,
)
from skyrl_modal.formats.metrics_writer import METRICS_FOLDER

if TYPE_CHECKING:
    import pandas

    from skyrl_modal.backends import Execution
    from skyrl_modal.protocol.job import Job
    from skyrl_modal.spec.volume import VolumeSpec
    from skyrl_modal.views.chart import Chart

#: Seconds between two looks at the files of a run that is followed: at first, and at most. On Modal each look costs a
#: request, and files become visible when the container commits its volume.
_MIN_POLL_INTERVAL, _MAX_POLL_INTERVAL = 0.1, 2.0
#: Bytes that are read at a time.
_READ_BYTES = 8 << 20
#: Number of files that are read.
_MAX_FILES = 20_000
#: Number of values of a table for pandas above which its keys have to be chosen: 4 GB.
_MAX_TABLE_VALUES = 500_000_000


class MetricsFiles(Protocol):
    """Where rows come from."""

    @property
    def readers(self) -> Iterable[FileReader | JsonLinesReader]:
        """What was read."""

    @property
    def skipped(self) -> int:
        """Number of lines and files that were skipped."""

    def update(self) -> bool:
        """Read what is new. Return whether there was something."""

    def wait(self, seconds: float) -> bool:
        """Wait for the end of the run. Return whether it has ended."""


class Metrics:
    """The metrics of a run: a sequence of rows, sorted by step, with one row for each step.

    A row is a dict: ``{"step": 12, "time": 1764243123.5, "reward/avg_raw_reward": 0.25, ...}`` with the time in seconds
    since the epoch, and the values as floats. ``Run.metrics`` returns it.

    Args:
        files: Where the rows come from.
        follow: Whether an iteration continues until the run has ended.
    """

    def __init__(self, files: MetricsFiles, *, follow: bool = False) -> None:
        self._files = files
        self._follow = follow
        self._rows = MergedRows()
        self.update()

    def update(self) -> bool:
        """Read what was logged since the last call. Return whether there was something."""
        with paused_collection():
            if not self._files.update():
                return False
            self._rows = MergedRows(self._files.readers)
            return True

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, float]:
        """Return the row at a position, such as ``metrics[-1]`` for the newest step."""
        return self._rows[index]

    def __iter__(self) -> Iterator[dict[str, float]]:
        """Yield the rows; with ``follow`` also those that are added until the run ends.

        A followed row is yielded again, completely, if keys were added to its step, or if a resumed attempt has trained
        the step again.
        """
        return self._followed() if self._follow else iter(self._rows)

    def _followed(self) -> Iterator[dict[str, float]]:
        yielded: dict[int, tuple[int, float]] = {}
        interval = _MIN_POLL_INTERVAL
        has_ended = False
        while True:
            for position, pieces in enumerate(self._rows.pieces):
                state = (len(pieces), pieces[-1][1])
                if yielded.get(pieces[-1][0]) != state:
                    yielded[pieces[-1][0]] = state
                    yield self._rows[position]
            if has_ended:
                return
            with translate_system_errors():
                has_ended = self._files.wait(interval)
                is_new = self.update()
            interval = _MIN_POLL_INTERVAL if is_new else min(2 * interval, _MAX_POLL_INTERVAL)

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of the metrics, sorted."""
        return self._rows.keys

    @property
    def skipped(self) -> int:
        """Number of lines that could not be read: damaged, or not written by this package."""
        return self._files.skipped

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Return the steps at which a metric was logged, and its values; two empty lists for another name."""
        return self._rows.series(key)

    def plot(self, *keys: str) -> Chart:
        """Return a chart of some metrics, without keys of the most important ones. See ``Run.plot``."""
        from skyrl_modal.run.plots import plot_metrics  # imported here, since most callers plot nothing

        return plot_metrics(self, keys)

    def to_pandas(self, keys: Sequence[str] | None = None) -> pandas.DataFrame:
        """Return a table with the columns ``step``, ``time`` and one for each metric. What was not logged is NaN.

        Args:
            keys: The metrics to include; None for all.

        Raises:
            ImportError: pandas is not installed.
            SpecError: The table would be too large.
        """
        try:
            import numpy as np
            import pandas as pd
        except ImportError as error:
            raise ImportError(f"to_pandas() requires pandas: pip install pandas ({error})") from error
        names = list(self.keys if keys is None else keys)
        rows = self._rows.pieces
        if len(rows) * len(names) > _MAX_TABLE_VALUES:
            text = f"{len(names):,} metrics"
            raise SpecError("keys", text, f"{len(rows):,} steps of all of them do not fit into the memory. Pass some")
        values = np.full((len(rows), len(names)), np.nan)
        columns = {name: column for column, name in enumerate(names)}
        for layer in range(max(map(len, rows), default=0)):
            blocks: dict[int, tuple[Any, list[int], list[bytes]]] = {}
            for position, pieces in enumerate(rows):
                if layer < len(pieces):
                    _, _, table, packed = pieces[layer]
                    _, positions, parts = blocks.setdefault(id(table), (table, [], []))
                    positions.append(position)
                    parts.append(packed)
            for table, positions, parts in blocks.values():
                block = np.frombuffer(b"".join(parts), dtype="<f8").reshape(len(parts), -1)
                found = [(columns[key], index) for index, key in enumerate(table.keys) if key in columns]
                for column, index in found:
                    values[positions, column] = block[:, index]
        frame = pd.DataFrame(values, columns=names)
        frame.insert(0, "step", np.array([pieces[-1][0] for pieces in rows], dtype="int64"), allow_duplicates=True)
        frame.insert(1, "time", np.array([pieces[-1][1] for pieces in rows]), allow_duplicates=True)
        return frame

    def __repr__(self) -> str:
        if not len(self):
            return "Metrics(no rows)"
        first, last = self._rows.pieces[0][-1][0], self._rows.pieces[-1][-1][0]
        skipped = f", {self.skipped:,} lines skipped" if self.skipped else ""
        return f"Metrics({len(self):,} rows, steps {first:,} to {last:,}, {len(self.keys):,} keys{skipped})"

    def _repr_html_(self) -> str:
        """Return the newest row for a notebook."""
        from skyrl_modal.views.metrics import metrics_to_html  # imported here, since only notebooks need it

        return metrics_to_html(repr(self), self[-1] if len(self) else {})


class RunFiles:
    """The files in the folder of a run, which its processes write.

    Args:
        execution: The run.
    """

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._files: dict[str, FileReader] = {}
        self._sizes: dict[str, int] = {}
        self._refused: set[str] = set()

    @property
    def readers(self) -> Iterable[FileReader]:
        """What was read, by file."""
        return self._files.values()

    @property
    def skipped(self) -> int:
        """Number of lines and files that were skipped."""
        return len(self._refused) + sum(reader.skipped for reader in self._files.values())

    def update(self) -> bool:
        """Read what is new in the files. Return whether there was something."""
        try:
            files = self._execution.list_files(METRICS_FOLDER)
        except FileNotFoundError:  # no process has logged metrics yet
            return False
        is_new = False
        total = sum(reader.offset for reader in self._files.values())
        for file in files:
            group = group_of_file(file.path)
            if group is None or self._sizes.get(file.path) == file.size:
                continue
            is_too_much = total > MAX_TOTAL_BYTES or len(self._files) >= _MAX_FILES
            if file.size > MAX_FILE_BYTES or (is_too_much and file.path not in self._files):
                self._refused.add(file.path)
                continue
            reader = self._files.setdefault(file.path, FileReader(group))
            self._sizes[file.path] = file.size
            before, begin = len(reader.pieces), reader.offset
            try:
                self._read(f"{METRICS_FOLDER}/{file.path}", reader)
            except FileNotFoundError:  # it was removed, or is no regular file
                self._refused.add(file.path)
            is_new |= len(reader.pieces) > before
            total += reader.offset - begin
        return is_new

    def _read(self, path: str, reader: FileReader) -> None:
        read_part = getattr(self._execution, "read_part", None)
        if read_part is None:
            reader.feed(self._execution.read_file(path)[reader.offset :])
            return
        while reader.offset <= MAX_FILE_BYTES:
            before = reader.offset
            data = read_part(path, before, _READ_BYTES)
            reader.feed(data)
            if reader.offset == before or len(data) < _READ_BYTES:
                return

    def wait(self, seconds: float) -> bool:
        """Wait for the end of the run. Return whether it has ended."""
        try:
            self._execution.wait(seconds)
        except TimeoutError:
            return False
        return True


class VolumeFile:
    """A file with lines of JSON on a volume of a run, as it is now.

    Args:
        job: The run.
        backend_name: The name of its backend.
        path: The path of the file in the container.

    Raises:
        SpecError: The path is on no volume of the run.
        PathNotFound: There is no such file.
    """

    def __init__(self, job: Job, backend_name: str, path: str) -> None:
        self._reader = JsonLinesReader()
        self.readers = [self._reader]
        self._is_read = False
        spec, inside = volume_of(job, path)
        from skyrl_modal.backends import get_backend
        from skyrl_modal.backends.transfer_options import TransferOptions
        from skyrl_modal.protocol.run_folder import open_regular_file

        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "metrics.jsonl"
            get_backend(backend_name).pull(spec, inside, target, TransferOptions())
            with open_regular_file(target) as file:
                self._reader.feed(_limited_lines(file))

    @property
    def skipped(self) -> int:
        """Number of lines that were skipped."""
        return self._reader.skipped

    def update(self) -> bool:
        """Return whether this is the first call: the file is read once."""
        is_first, self._is_read = not self._is_read, True
        return is_first

    def wait(self, seconds: float) -> bool:
        """Return True: the file is not followed."""
        return True


def _limited_lines(file: Any) -> Iterator[bytes]:
    """Yield the lines of a file; the rest of a line that is too long is a further line."""
    remaining = MAX_TOTAL_BYTES
    while remaining > 0 and (line := file.readline(_READ_BYTES + 1)):
        remaining -= len(line)
        yield line


def volume_of(job: Job, path: str) -> tuple[VolumeSpec, str]:
    """Return the volume of a run that contains a path of the container, and the path on it.

    Raises:
        SpecError: The path is on no volume of the run.
    """
    from skyrl_modal.spec.volume import VolumeSpec

    normal = posixpath.normpath(path)
    for volume in sorted(job.volumes, key=lambda volume: -len(volume.mount_path)):
        if normal.startswith(f"{volume.mount_path}/") and "\0" not in normal:
            spec = VolumeSpec(
                name=volume.name, mount_path=volume.mount_path, version=volume.version, create_if_missing=False
            )
            return spec, normal.removeprefix(f"{volume.mount_path}/")
    mounted = ", ".join(volume.mount_path for volume in job.volumes) or "none"
    raise SpecError("path", path, f"it is on no volume of the run. Mounted volumes: {mounted}")
