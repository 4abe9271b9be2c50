"""The rollouts of a run, from what its processes have recorded and what SkyRL has written to volumes."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import posixpath
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from skyrl_modal.errors import RunLost
from skyrl_modal.formats.metrics_rows import MAX_FILE_BYTES, group_of_file
from skyrl_modal.formats.printed_examples import ExampleReader
from skyrl_modal.formats.rollout import EVAL, FILE, PRINTED, TRAIN, Rollout
from skyrl_modal.formats.rollout_files import (
    EVALS_FOLDER,
    LineReader,
    find_eval,
    read_eval,
    read_other,
    read_recorded,
)
from skyrl_modal.formats.rollout_selection import RolloutSelection
from skyrl_modal.formats.rollout_writer import ROLLOUTS_FOLDER
from skyrl_modal.protocol.state import VolumeEntryKind
from skyrl_modal.run.metrics import volume_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from skyrl_modal.backends.base import Backend, Execution, VolumeEntry
    from skyrl_modal.protocol.job import Job
    from skyrl_modal.spec.volume import VolumeSpec

#: Bytes that are read of all files of a source together, and number of files.
_MAX_BYTES, _MAX_FILES = 4 << 30, 20_000
#: Bytes of the output in which printed examples are searched for, from its beginning.
_MAX_OUTPUT = 64 << 20
#: Evaluations that were written so many seconds before the run was created are those of another run.
_CLOCK_DIFFERENCE = 300.0


class Rollouts(list[Rollout]):
    """A list of rollouts, which a notebook displays as a table.

    Attributes:
        skipped: Number of lines and files that could not be read.
        left_out: Number of rollouts for which there was no space in the memory.
    """

    def __init__(self, rollouts: Iterable[Rollout] = (), *, skipped: int = 0, left_out: int = 0) -> None:
        super().__init__(rollouts)
        self.skipped = skipped
        self.left_out = left_out

    def _repr_html_(self) -> str:
        """Return the first ones for a notebook."""
        from skyrl_modal.views.rollouts import rollouts_to_html  # imported here, since only notebooks need it

        return rollouts_to_html(self)


class RolloutSources:
    """Reads the rollouts of a run.

    Args:
        backend: The run's backend.
        job: The run.
        selection: Receives the rollouts.
        source: Only those of this source, or of those that begin with it and a slash; None for all.

    Attributes:
        skipped: Number of lines and files that could not be read.
    """

    def __init__(self, backend: Backend, job: Job, selection: RolloutSelection, source: str | None) -> None:
        self.skipped = 0
        self._backend = backend
        self._job = job
        self._selection = selection
        self._source = source
        self._remaining = _MAX_BYTES

    def _is_wanted(self, source: str) -> bool:
        """Return whether a source is to be read."""
        return self._source is None or source == self._source or source.startswith(f"{self._source}/")

    def read_recorded(self, execution: Execution) -> bool:
        """Read what the processes of the run have recorded. Return whether there is something of a training.

        The steps of a later attempt replace those of earlier ones from its first step on, for each source.
        """
        try:
            files = execution.list_files(ROLLOUTS_FOLDER)
        except FileNotFoundError:  # nothing was recorded
            return False
        groups: dict[tuple[int, int], list[str]] = {}
        for file in files[:_MAX_FILES]:
            group = group_of_file(file.path)
            if group is None or file.size > min(MAX_FILE_BYTES, self._remaining):
                self.skipped += 1
                continue
            self._remaining -= file.size
            groups.setdefault(group, []).append(file.path)
        first_steps: dict[str, int] = {}
        for group in sorted(groups, reverse=True):
            found: dict[str, int] = {}
            for path in groups[group]:
                for rollout in self._recorded(execution, path):
                    if rollout.step < first_steps.get(rollout.source, rollout.step + 1):
                        found[rollout.source] = min(rollout.step, found.get(rollout.source, rollout.step))
                        if self._is_wanted(rollout.source):
                            self._selection.add(rollout)
            first_steps.update(found)
        return TRAIN in first_steps

    def _recorded(self, execution: Execution, path: str) -> Iterator[Rollout]:
        read_part = getattr(execution, "read_part", None)
        name = f"{ROLLOUTS_FOLDER}/{path}"
        try:
            data = execution.read_file(name) if read_part is None else read_part(name, 0, MAX_FILE_BYTES)
        except FileNotFoundError:  # it was removed, or is no regular file
            self.skipped += 1
            return
        for line in data[: data.rfind(b"\n") + 1].splitlines():  # the rest of a line is written meanwhile
            rollout = read_recorded(line)
            if rollout is None:
                self.skipped += 1
            else:
                yield rollout

    def read_printed(self, read_output: Callable[[], Iterator[bytes]]) -> None:
        """Read the examples in the output."""
        reader = ExampleReader()
        with contextlib.suppress(FileNotFoundError, RunLost):  # the output does not exist, or not any more
            reader.read(self._limited(read_output(), _MAX_OUTPUT))
        for rollout in reader.rollouts:
            if self._is_wanted(rollout.source):
                self._selection.add(rollout)

    def read_evals(self) -> None:
        """Read the evaluations that SkyRL has dumped since the run was created."""
        if self._source is not None and self._source.partition("/")[0] != EVAL:
            return
        oldest = _created_at(self._job) - _CLOCK_DIFFERENCE
        for folder in self._job.export_folders:
            volume, path = volume_of(self._job, posixpath.join(folder, EVALS_FOLDER))
            try:
                entries = list(self._files(volume, path))
            except FileNotFoundError:  # no evaluation was dumped yet
                continue
            for entry in entries:
                found = find_eval(entry.path)
                if found is not None and entry.mtime >= oldest:
                    self._read_eval(volume, entry, *found)

    def _read_eval(self, volume: VolumeSpec, entry: VolumeEntry, step: int, source: str) -> None:
        if self._is_wanted(source) and self._selection.wants(step):
            for line in self._lines(volume, entry):
                self._add(read_eval(line, step, source))

    def read_path(self, path: str) -> None:
        """Read a file of a volume, or all files with lines of JSON in a folder.

        Args:
            path: The path in the container.

        Raises:
            SpecError: The path is on no volume of the run.
            PathNotFound: There is no such path.
        """
        volume, inside = volume_of(self._job, path)
        for entry in list(self._files(volume, inside)):
            if not entry.path.endswith(".jsonl") and entry.path != inside:
                continue
            found = find_eval(entry.path)
            if found is not None:
                self._read_eval(volume, entry, *found)
            elif self._is_wanted(FILE):
                for number, line in enumerate(self._lines(volume, entry)):
                    self._add(read_other(line, number))

    def _add(self, rollout: Rollout | None) -> None:
        if rollout is None:
            self.skipped += 1
        else:
            self._selection.add(rollout)

    def _files(self, volume: VolumeSpec, path: str) -> Iterator[VolumeEntry]:
        """Yield the files of a folder of a volume, sorted by path."""
        found = (entry for entry in self._backend.walk(volume, path) if entry.type is VolumeEntryKind.FILE)
        yield from sorted(itertools.islice(found, _MAX_FILES), key=lambda entry: entry.path)

    def _lines(self, volume: VolumeSpec, entry: VolumeEntry) -> Iterator[bytes]:
        """Yield the lines of a file; nothing if all files together are too large, or if it was removed."""
        if entry.size > self._remaining:
            self.skipped += 1
            return
        self._remaining -= entry.size
        reader = LineReader()
        try:
            yield from reader.lines(self._limited(self._backend.read(volume, entry.path), entry.size))
        except FileNotFoundError:
            self.skipped += 1
        finally:
            self.skipped += reader.skipped

    def _limited(self, pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
        """Yield the pieces of a file up to the size that it had when it was listed."""
        for piece in pieces:
            yield piece[:size]
            size -= len(piece)
            if size <= 0:
                return


def read_rollouts(
    backend: Backend,
    job: Job,
    execution: Execution,
    read_output: Callable[[], Iterator[bytes]],
    *,
    step: int | None = None,
    best: int | None = None,
    worst: int | None = None,
    source: str | None = None,
    path: str | None = None,
) -> Rollouts:
    """Return the rollouts of a run. Examples in the output are read if no others of the training are recorded.

    Args:
        backend: The run's backend.
        job: The run.
        execution: The run.
        read_output: Returns the pieces of the run's output.
        step: As in ``Run.rollouts``.
        best: As in ``Run.rollouts``.
        worst: As in ``Run.rollouts``.
        source: As in ``Run.rollouts``.
        path: As in ``Run.rollouts``.

    Raises:
        SpecError: An argument is wrong.
        PathNotFound: There is no such path.
        BackendUnavailable: The backend cannot answer now.
    """
    from skyrl_modal.spec.fields import check_whole_number

    for name, value in (("step", step), ("best", best), ("worst", worst)):
        if value is not None:
            check_whole_number(name, value, 0)
    selection = RolloutSelection(step=step, best=best, worst=worst)
    sources = RolloutSources(backend, job, selection, source)
    if path is not None:
        sources.read_path(path)
    else:
        has_training = sources.read_recorded(execution)
        sources.read_evals()
        if source == PRINTED or (not has_training and source in (None, f"{PRINTED}/eval")):
            sources.read_printed(read_output)
    return Rollouts(selection.result(), skipped=sources.skipped, left_out=selection.left_out)


def _created_at(job: Job) -> float:
    """Return when a run was created, in seconds since the epoch; 0 if it is not known."""
    try:
        return datetime.datetime.fromisoformat(job.created_at).timestamp()
    except ValueError:
        return 0.0
