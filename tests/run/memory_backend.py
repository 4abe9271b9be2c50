"""A backend whose runs are lists of events, as a user could write one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from skyrl_modal.backends import VolumeEntry
from skyrl_modal.backends.base import CheckResult, Handle, PreparedRun, StoredFile
from skyrl_modal.backends.transfer_options import TransferOptions
from skyrl_modal.protocol.events import OutputEvent, ResultEvent, RunEvent
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.result import RunResultRecord
from skyrl_modal.protocol.state import FailureCause, RunState, VolumeEntryKind
from skyrl_modal.spec.run_spec import RunSpec
from skyrl_modal.spec.volume import VolumeSpec


def make_record(
    state: RunState, returncode: int, cause: FailureCause | None = None, detail: str = ""
) -> RunResultRecord:
    """Return the record of a run that took one second."""
    return RunResultRecord(
        run_id="memory",
        state=state,
        returncode=returncode,
        attempts=1,
        started_at="2026-01-01T00:00:00+00:00",
        duration=1.0,
        cause=cause,
        detail=detail,
    )


SUCCESS = ResultEvent(make_record(RunState.SUCCEEDED, 0))


class MemoryExecution:
    """A run that yields given events.

    Attributes:
        cancellations: The value of ``now`` for each call of ``cancel``.
    """

    def __init__(self, events: Sequence[RunEvent | Exception], handle: Handle) -> None:
        self.handle = handle
        self.url: str | None = None
        self.log_path = "memory"
        self.cancellations: list[bool] = []
        self._events = events

    def wait_started(self) -> None:
        """Do nothing: the run has started."""

    def events(self) -> Iterator[RunEvent]:
        """Yield the events; an exception among them is raised."""
        for event in self._events:
            if isinstance(event, Exception):
                raise event
            yield event

    @property
    def _output(self) -> bytes:
        return b"".join(event.data for event in self._events if isinstance(event, OutputEvent))

    def log_size(self) -> int:
        """Return the size of the output."""
        return len(self._output)

    def read_log(self, offset: int) -> bytes:
        """Return the output from an offset on."""
        return self._output[offset:]

    def list_files(self, folder: str) -> Sequence[StoredFile]:
        """Raise FileNotFoundError: there are no files."""
        raise FileNotFoundError(folder)

    def read_file(self, path: str) -> bytes:
        """Raise FileNotFoundError: there are no files."""
        raise FileNotFoundError(path)

    def state(self) -> RunState:
        """Return the state of the result."""
        return self.wait().state

    def wait(self, timeout: float | None = None) -> RunResultRecord:
        """Return the result."""
        return next(event.record for event in self._events if isinstance(event, ResultEvent))

    def cancel(self, *, now: bool = False) -> None:
        """Record the request."""
        self.cancellations.append(now)


class MemoryBackend:
    """A backend that starts one prepared execution for every command."""

    name = "memory"

    def __init__(self, *events: RunEvent | Exception, handle: Handle | None = None) -> None:
        self.execution = MemoryExecution(events, {"id": "memory"} if handle is None else handle)
        self.runs: list[PreparedRun] = []

    def check(self, job: Job, spec: RunSpec) -> Sequence[str]:
        """Accept every run."""
        return []

    def describe(self, job: Job, spec: RunSpec) -> Sequence[tuple[str, str]]:
        """Return one row."""
        return [("where", "memory")]

    def start(self, run: PreparedRun, *, owned: bool) -> MemoryExecution:
        """Return the prepared execution."""
        self.runs.append(run)
        return self.execution

    def attach(self, job: Job, handle: Handle) -> MemoryExecution:
        """Return the prepared execution."""
        return self.execution

    def diagnose(self) -> Iterator[CheckResult]:
        """Yield one check."""
        yield CheckResult("memory", True, "available")

    def ls(self, volume: VolumeSpec, path: str) -> Sequence[VolumeEntry]:
        """Return no entries."""
        return []

    def kind(self, volume: VolumeSpec, path: str, *, follow_links: bool = True) -> VolumeEntryKind | None:
        """Return None: there are no files."""
        return None

    def walk(self, volume: VolumeSpec, path: str) -> Iterator[VolumeEntry]:
        """Yield no entries."""
        return iter(())

    def read(self, volume: VolumeSpec, path: str) -> Iterator[bytes]:
        """Raise FileNotFoundError: there are no files."""
        raise FileNotFoundError(path)

    def remove(self, volume: VolumeSpec, path: str, *, recursive: bool) -> None:
        """Raise FileNotFoundError: there are no files."""
        raise FileNotFoundError(path)

    def pull(self, volume: VolumeSpec, path: str, local: Path, options: TransferOptions) -> Sequence[str]:
        """Raise FileNotFoundError: there are no files."""
        raise FileNotFoundError(path)

    def push(self, volume: VolumeSpec, local: Path, path: str, options: TransferOptions) -> Sequence[str]:
        """Raise FileNotFoundError: there are no volumes."""
        raise FileNotFoundError(volume.name)
