"""The index of the runs that were started from this machine: one record for each, in the user's state folder."""

from __future__ import annotations

import itertools
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from skyrl_modal.dataclass import dataclass, field
from skyrl_modal.errors import AmbiguousRun, RecordError, RunNotFound, SpecError
from skyrl_modal.findings import Finding
from skyrl_modal.protocol.codec import ProtocolError
from skyrl_modal.protocol.job import SCHEMA_VERSION, Job
from skyrl_modal.protocol.run_folder import read_record, write_record
from skyrl_modal.user_folders import create_user_folder, state_folder
from skyrl_modal.views.text import escape_controls

if TYPE_CHECKING:
    from skyrl_modal.spec.run_spec import RunSpec

#: The text that names the newest run.
LATEST = "latest"
#: Length of the part of a run id that is a time, with a precision of one second.
_SECOND_LENGTH = len("20260131-120000")
#: Number of runs that an error lists.
MAX_CANDIDATES = 10
#: A handle may contain the token of the run's Ray: only the user may read it.
_FILE_MODE = 0o600
#: A name of a file has at most 255 bytes on the usual file systems; ``write_atomically`` and the suffix add some.
_MAX_ID_BYTES = 200

#: Age from which a temporary file of the index belongs to a process that was killed.
_UNFINISHED_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRecord:
    """A run as it was started.

    Attributes:
        job: The run.
        spec: What the user declared, as ``spec.stored.encode_spec`` returned it; empty if it is not known.
        backend: The name of its backend.
        handle: What the backend finds the run by.
        findings: What the plan of the run has found, without notes.
        schema_version: Version of this record's schema.
    """

    job: Job
    backend: str
    handle: Mapping[str, str | int] = field(repr=False)
    spec: Mapping[str, object] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def read_spec(self) -> RunSpec:
        """Return what the user declared.

        Raises:
            RecordError: The stored spec is not valid.
            CheckoutNotFound: The checkout does not exist any more.
        """
        from skyrl_modal.spec.stored import decode_spec  # imported here, since a list of runs does not need it

        try:
            return decode_spec(self.spec)
        except (SpecError, TypeError) as error:
            raise RecordError(f"the spec of run {self.job.run_id}", str(error)) from error


class RunIndex:
    """The records of this user on this machine. Each run has a file of its own, so processes may write concurrently."""

    def __init__(self) -> None:
        self._folder = state_folder() / "index"

    def add(self, record: IndexRecord) -> None:
        """Write a record. A reader finds the old content or the new one, never a part."""
        create_user_folder(self._folder)
        write_record(self._path(record.job.run_id), record, mode=_FILE_MODE)

    def get(self, run_id: str) -> IndexRecord:
        """Return the record of a run.

        Raises:
            RunNotFound: No run has this id. The error contains similar ids.
            RecordError: The record is damaged, or was written by a newer version.
        """
        record = self._read(self._path(run_id)) if _is_file_name(run_id) else None
        if record is not None:
            return record
        known = [path.stem for path in self._paths()]
        matches = [name for name in known if run_id and name.startswith(run_id)][:3]
        if not matches:
            from difflib import get_close_matches  # imported here, since most ids are found

            matches = get_close_matches(run_id, known, n=3, cutoff=0.5)
        raise RunNotFound(run_id, matches)

    def find(self, text: str) -> IndexRecord:
        """Return the record of the run that a text names.

        Args:
            text: The run's id, the beginning of it, ``latest`` for the newest run, or the name of a run. An id has
                precedence over the beginning of an id, and that over a name.

        Raises:
            RunNotFound: There is no such run. The error contains similar ids.
            AmbiguousRun: Several runs match. The error contains their ids.
            RecordError: The record is damaged, or was written by a newer version.
        """
        if text == LATEST:
            for record in self.newest_first():
                return record
            raise RunNotFound(text)
        try:
            return self.get(text)
        except RunNotFound:
            matches = [path.stem for path in self._paths() if text and path.stem.startswith(text)]
            if not matches:
                matches = [record.job.run_id for record in self.newest_first() if text and record.job.name == text]
                matches.reverse()
            if not matches:
                raise
        if len(matches) > 1:
            raise AmbiguousRun(text, matches[::-1][:MAX_CANDIDATES])
        return self.get(matches[0])

    def newest_first(self) -> Iterator[IndexRecord]:
        """Yield the records, the newest first, and read each when it is requested.

        A record that cannot be read is skipped with a warning.
        """
        for name in self._names_newest_first():
            try:
                record = self._read(self._folder / name)
            except RecordError as error:
                warnings.warn(escape_controls(f"skipping a record of a run: {error}"), stacklevel=2)
                continue
            if record is not None:
                yield record

    def _names_newest_first(self) -> Iterator[str]:
        """Yield the names of the records. The ids of runs that were started in one second do not order them."""
        for _, names in itertools.groupby(reversed(self._names()), lambda name: name[:_SECOND_LENGTH]):
            same = list(names)
            yield from same if len(same) == 1 else sorted(same, key=self._written_at, reverse=True)

    def _written_at(self, name: str) -> int:
        try:
            return os.lstat(self._folder / name).st_mtime_ns
        except FileNotFoundError:  # it was removed meanwhile
            return 0

    def written_before(self, moment: float) -> list[Path]:
        """Return the files of the records that were last written before a time, the oldest first.

        Args:
            moment: Seconds since the epoch.
        """
        return [path for path in self._paths() if path.lstat().st_mtime < moment]

    def read_file(self, path: Path) -> IndexRecord | None:
        """Return the record in a file of this index; None if there is none.

        Raises:
            RecordError: The record is damaged, or was written by a newer version.
        """
        return self._read(path)

    def unfinished_files(self) -> list[Path]:
        """Return the files that a killed process has not finished to write: writing one takes less than a second."""
        latest = time.time() - _UNFINISHED_SECONDS
        hidden = [self._folder / name for name in self._list() if name.startswith(".") and ".json." in name[1:]]
        return [path for path in hidden if path.lstat().st_mtime < latest]

    def _path(self, run_id: str) -> Path:
        return self._folder / f"{run_id}.json"

    def _paths(self) -> list[Path]:
        return [self._folder / name for name in self._names()]

    def _names(self) -> list[str]:
        """Return the names of the records' files, the oldest first: a run's id begins with its time."""
        return [name for name in self._list() if name.endswith(".json") and not name.startswith(".")]

    def _list(self) -> list[str]:
        try:
            return sorted(os.listdir(self._folder))
        except (FileNotFoundError, NotADirectoryError):
            return []

    @staticmethod
    def _read(path: Path) -> IndexRecord | None:
        """Read a record; None if there is none."""
        try:
            record = read_record(IndexRecord, path)
            if record is not None:
                _check_record(record, path.stem)
        except (ProtocolError, OSError, ValueError) as error:
            raise RecordError(str(path), str(error)) from error
        return record


def _is_file_name(run_id: str) -> bool:
    """Return whether there can be a file for this id: it is no path, and not longer than names of files are."""
    return "/" not in run_id and "\0" not in run_id and len(os.fsencode(run_id)) <= _MAX_ID_BYTES


def _check_record(record: IndexRecord, run_id: str) -> None:
    """Raise ValueError for a record of another run, whose id could be a path, or of a run without a time."""
    if record.job.run_id != run_id:
        raise ValueError(f"it is a record of the run {record.job.run_id!r}")
    if datetime.fromisoformat(record.job.created_at).tzinfo is None:
        raise ValueError(f"created_at has no time zone: {record.job.created_at!r}")
