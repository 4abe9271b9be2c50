"""The list of runs, from summaries that are kept: those of runs that have ended do not change."""

from __future__ import annotations

import contextlib
import math
import threading
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from skyrl_modal.dataclass import dataclass
from skyrl_modal.errors import RecordError, SpecError
from skyrl_modal.protocol.state import RunState
from skyrl_modal.run.handle import Run
from skyrl_modal.run.index import IndexRecord, RunIndex
from skyrl_modal.run.listing import RunSummary, summarize
from skyrl_modal.run.spending import script_of_command
from skyrl_modal.web.newest_step import NewestStep
from skyrl_modal.web.plain import plain

#: Seconds after which a run that has not ended is looked at again: on this machine, and on another backend.
_LOCAL_AGE, _REMOTE_AGE = 0.5, 5.0
#: Seconds after which a backend that could not be reached is asked again.
_UNREACHABLE_AGE = 30.0
#: What the list can be sorted by.
SORT_KEYS = ("created", "name", "state", "duration", "cost")
#: Length of a command in the list.
_COMMAND_LENGTH = 1000
#: Length of the part of a run id that is a time, with a precision of one second.
_SECOND_LENGTH = len("20260131-120000")


@dataclass(frozen=True, slots=True, kw_only=True)
class ListFilter:
    """Which runs are listed.

    Attributes:
        search: Those whose id, name, command or tag contains this text, in upper or lower case.
        states: Those in one of these states; empty for all.
        tags: Those with all of these tags.
        scripts: Those that start one of these scripts; empty for all.
        since: Those that were created since then; None for all.
        until: Those that were created before then; None for all.
        sort: What they are sorted by: one of ``SORT_KEYS``. Those without a value are the last ones.
        is_descending: Whether the greatest one, or the newest one, is the first.
    """

    search: str = ""
    states: Sequence[str] = ()
    tags: Sequence[str] = ()
    scripts: Sequence[str] = ()
    since: datetime | None = None
    until: datetime | None = None
    sort: str = "created"
    is_descending: bool = True


class _Entry:
    """A run in the list."""

    def __init__(self, run: Run, order: tuple[str, int], folder: str | None) -> None:
        self.run = run
        self.order = order
        self.steps = None if folder is None else NewestStep(folder)
        self.created_at = datetime.fromisoformat(run.job.created_at)
        self.script = plain(script_of_command(run.job.command))
        self.is_local = run.backend == "local"
        self.is_final = False
        self.checked_at = -math.inf
        self.step: int | None = None
        self.values: dict[str, Any] = {}
        job = run.job
        self.text = "\n".join((job.run_id, job.name or "", job.command, *job.tags)).casefold()
        if not self.is_local:  # shown until its backend has answered
            placeholder = RunSummary(
                run_id=job.run_id, name=job.name, tags=job.tags, command=job.command, backend=run.backend,
                state=RunState.UNKNOWN, created_at=job.created_at, nodes=job.nodes,
            )  # fmt: skip
            self.set(placeholder)

    def set(self, summary: RunSummary) -> bool:
        """Replace the summary. Return whether it has changed."""
        before = self.values
        command = summary.command[:_COMMAND_LENGTH]
        self.values = plain({**summary.to_json(), "command": command, "script": self.script, "step": self.step})
        self.is_final = summary.state.is_final and summary.returncode is not None
        return {**before, "duration": None} != {**self.values, "duration": None}

    def update(self, unreachable: dict[str, str]) -> bool:
        """Look at the run. Return whether its summary has changed."""
        if self.steps is not None:
            self.step = self.steps.find()
        is_new = self.set(summarize(self.run, unreachable))
        self.checked_at = time.monotonic()
        return is_new

    @property
    def is_due(self) -> bool:
        """Whether the run is looked at again."""
        age = _LOCAL_AGE if self.is_local else _REMOTE_AGE
        return not self.is_final and time.monotonic() - self.checked_at > age


class RunList:
    """The runs that were started from this machine.

    Attributes:
        version: Number that changes with the list.
    """

    def __init__(self) -> None:
        self.version = 0
        self._entries: dict[str, _Entry] = {}
        self._lock = threading.Lock()
        self._unreachable: dict[str, str] = {}
        self._unreachable_since: dict[str, float] = {}
        self._asked: set[str] = set()

    def refresh(self) -> None:
        """Look for new runs, and at those on this machine that have not ended. The newest ones are looked at first."""
        with self._lock:
            paths = {path.stem: path for path in RunIndex().written_before(math.inf)}
            for run_id in self._entries.keys() - paths.keys():
                del self._entries[run_id]
                self.version += 1
            for run_id in sorted(paths, reverse=True):
                entry = self._entries.get(run_id) or self._read(paths[run_id])
                if entry is not None and entry.is_local and entry.is_due:
                    self.version += entry.update({})
                if entry is not None and run_id not in self._entries:
                    self._entries[run_id] = entry
                    self.version += 1

    def _read(self, path: Path) -> _Entry | None:
        try:
            record = RunIndex().read_file(path)
        except RecordError:  # `skyrl-modal ps` warns about it
            return None
        if record is None:
            return None
        order = (record.job.run_id[:_SECOND_LENGTH], path.lstat().st_mtime_ns)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _Entry(Run._from_record(record), order, _folder_of(record))

    def due_elsewhere(self) -> list[str]:
        """Return the runs of other backends that are to be looked at by ``update``."""
        now = time.monotonic()
        for backend, moment in list(self._unreachable_since.items()):
            if now - moment > _UNREACHABLE_AGE:
                del self._unreachable_since[backend]
                self._unreachable.pop(backend, None)
        found = [
            run_id
            for run_id, entry in list(self._entries.items())
            if not entry.is_local and entry.is_due and run_id not in self._asked
        ]
        self._asked.update(found)
        return found

    def update(self, run_id: str) -> None:
        """Look at a run of another backend, which may take seconds."""
        try:
            entry = self._entries.get(run_id)
            if entry is not None and entry.update(self._unreachable):
                self.version += 1
            for backend in self._unreachable:
                self._unreachable_since.setdefault(backend, time.monotonic())
        finally:
            self._asked.discard(run_id)

    def set_step(self, run_id: str, step: int) -> None:
        """Record the newest step of a run of another backend, whose metrics were read."""
        entry = self._entries.get(run_id)
        if entry is not None and not entry.is_local and entry.step != step:
            entry.step = step
            entry.values = {**entry.values, "step": step}

    def summary(self, run_id: str) -> dict[str, Any] | None:
        """Return the summary of a run as JSON; None if it is not in the list."""
        entry = self._entries.get(run_id)
        return None if entry is None else entry.values

    def page(self, wanted: ListFilter, *, limit: int, offset: int, is_complete: bool = True) -> dict[str, Any]:
        """Return a part of the list as JSON.

        Args:
            wanted: Which runs.
            limit: Number of runs at most.
            offset: Number of runs to leave out.
            is_complete: Whether ``refresh`` has ended since the list was requested.
        """
        entries = list(self._entries.values())  # a copy, since another thread may add to it
        entries.sort(key=lambda entry: entry.order, reverse=True)
        if wanted.sort != "created":
            known = [entry for entry in entries if entry.values[wanted.sort] is not None]
            known.sort(key=lambda entry: entry.values[wanted.sort], reverse=wanted.is_descending)
            entries = known + [entry for entry in entries if entry.values[wanted.sort] is None]
        elif not wanted.is_descending:
            entries.reverse()
        found = [entry for entry in entries if _matches(entry, wanted)]
        reasons = {
            (entry.run.backend, entry.values["unavailable_reason"])
            for entry in entries
            if entry.values["unavailable_reason"] is not None
        }
        return {
            "total": len(found),
            "runs": [entry.values for entry in found[offset : offset + limit]],
            "states": _distinct(entry.values["state"] for entry in entries),
            "tags": _distinct(tag for entry in entries for tag in entry.values["tags"]),
            "scripts": _distinct(entry.script for entry in entries),
            "unavailable": [{"backend": backend, "reason": reason} for backend, reason in sorted(reasons)],
            "pending": sum(entry.checked_at == -math.inf for entry in entries) + (not is_complete),
        }


def summary_of(run: Run) -> dict[str, Any]:
    """Return the summary of a run as JSON, with its newest step if it is on this machine."""
    folder = run._execution.handle.get("run_folder")
    entry = _Entry(run, ("", 0), folder if run.backend == "local" and isinstance(folder, str) else None)
    entry.update({})
    return entry.values


def _folder_of(record: IndexRecord) -> str | None:
    """Return the folder of a run on this machine; None if it is elsewhere."""
    folder = record.handle.get("run_folder")
    return folder if record.backend == "local" and isinstance(folder, str) else None


def _distinct(values: Iterable[str]) -> list[str]:
    return sorted(set(values))


def _matches(entry: _Entry, wanted: ListFilter) -> bool:
    values: Mapping[str, Any] = entry.values
    return (
        (not wanted.states or values["state"] in wanted.states)
        and set(wanted.tags) <= set(values["tags"])
        and (not wanted.scripts or entry.script in wanted.scripts)
        and (wanted.since is None or entry.created_at >= wanted.since)
        and (wanted.until is None or entry.created_at < wanted.until)
        and wanted.search.casefold() in entry.text
    )


def parse_moment(name: str, text: str, *, is_end: bool = False) -> datetime:
    """Return the time of a date, or of a date with a time. Without a time zone, it is in UTC.

    Args:
        name: The name of the parameter, for the error.
        text: A date such as ``2026-01-31``, or ISO 8601.
        is_end: Whether a date alone means the end of the day.

    Raises:
        SpecError: It is neither.

    Example:
        >>> parse_moment("until", "2026-01-31", is_end=True).isoformat()
        '2026-02-01T00:00:00+00:00'
    """
    with contextlib.suppress(ValueError, OverflowError):
        moment = datetime.fromisoformat(text)
        if is_end and len(text) <= len("2026-01-31"):
            moment += timedelta(days=1)
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    raise SpecError(name, text, "pass a date such as 2026-01-31, or a time in ISO 8601")
