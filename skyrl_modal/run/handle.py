"""A run as its caller sees it: a handle, its states, and its result."""

from __future__ import annotations

import codecs
import enum
import itertools
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from attrs import field, frozen

from skyrl_modal.backends import Event, Execution, backend_named
from skyrl_modal.errors import CommandFailed, RunCancelled, RunLost, RunTimeout, SpecError
from skyrl_modal.protocol.job import Job
from skyrl_modal.run.index import IndexRecord, RunIndex

#: Lines of the output that an error carries.
TAIL_LINES = 30
#: Bytes of the output that these lines are taken from.
TAIL_BYTES = 1 << 16
#: What of a rank's logs comes first: ours, and what ``ray start`` printed.
OWN_LOGS = ("supervisor.log", "start.log")
#: How far back the log of a call that was started elsewhere is looked for.
CALLS_KEPT = timedelta(days=7)


class RunState(enum.StrEnum):
    """What a run is doing, or how it ended.

    Example:
        >>> RunState("failed").is_final, RunState.RUNNING.is_final
        (True, False)
    """

    PENDING = "pending"
    PREPARING = "preparing"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    LOST = "lost"

    @property
    def is_final(self) -> bool:
        """Whether it stays so."""
        return self not in (RunState.PENDING, RunState.PREPARING, RunState.RUNNING)


class Reporter(Protocol):
    """Takes the lines about a run that are ours and not the command's."""

    def line(self, text: str) -> None:
        """Take one."""

    def warn(self, text: str) -> None:
        """Take a warning."""


@frozen(kw_only=True)
class RunResult:
    """How a run ended.

    Attributes:
        run_id: The run.
        returncode: The command's exit code; 128+N for signal N; 124 for a run that was ended at its time-out; 125 for
            one that never got as far as its command, or was lost.
        state: A final state.
        attempts: How often the command was started.
        started_at: When the run began in its container, in UTC.
        duration: Seconds from then to its end, Ray's start and end included.
        log_path: Where the whole output is kept.
        backend: The name of the backend that it ran on.
        detail: What is known about the cause of a failure.
        log_tail: The last lines of the output.
    """

    run_id: str
    returncode: int
    state: RunState
    attempts: int
    started_at: datetime
    duration: float
    log_path: str
    backend: str
    detail: str = ""
    log_tail: str = field(default="", repr=False)

    @property
    def succeeded(self) -> bool:
        """Whether the command ran to its end and ended with 0."""
        return self.state is RunState.SUCCEEDED

    def check_returncode(self) -> None:
        """Raise the error that tells how the run ended; nothing where it succeeded.

        Raises:
            CommandFailed: The command ended with another exit code than 0, or could not be started.
            RunTimeout: The run was ended at its time-out.
            RunCancelled: It was cancelled.
            RunLost: It died without a result.
        """
        facts: dict[str, Any] = {"run_id": self.run_id, "detail": self.detail, "log_tail": self.log_tail}
        if self.state is RunState.TIMED_OUT:
            raise RunTimeout(**facts, returncode=self.returncode, seconds=self.duration)
        if self.state is RunState.CANCELLED:
            raise RunCancelled(**facts, returncode=self.returncode)
        if self.state is RunState.LOST:
            raise RunLost(**facts)
        if self.state is not RunState.SUCCEEDED:
            raise CommandFailed(**facts, returncode=self.returncode)


class Run:
    """A handle of a run. It is got from ``Launcher.submit`` or ``Run.attach``.

    Attributes:
        id: The run's id.
        job: What runs.
    """

    def __init__(self, job: Job, backend_name: str, execution: Execution) -> None:
        self.id = job.id
        self.job = job
        self._backend_name = backend_name
        self._execution = execution

    def __repr__(self) -> str:
        return f"Run(id={self.id!r}, command={self.job.command!r}, backend={self._backend_name!r})"

    @classmethod
    def attach(cls, run_id: str) -> Run:
        """Find a run by its id, from any process of this machine's user.

        Args:
            run_id: The run's id; or the id of a call on Modal (``"fc-..."``), which is found from any machine with the
                same account. A call that was started elsewhere has its log and its result, and no more.

        Raises:
            RunNotFound: No run has this id; the error has the nearest.
        """
        if not run_id.startswith("fc-"):
            return cls._of(RunIndex().get(run_id))
        for record in RunIndex().all():
            if record.handle.get("call_id") == run_id:
                return cls._of(record)
        since = datetime.now(UTC) - CALLS_KEPT
        job = Job(id=run_id, command="(started elsewhere)", workdir="/", run_dir="/", created_at=since.isoformat())
        return cls._of(IndexRecord(job, "modal", {"call_id": run_id}))

    @classmethod
    def _of(cls, record: IndexRecord) -> Run:
        backend = backend_named(record.backend)
        return cls(record.job, record.backend, backend.attach(record.job, record.handle))

    def remember(self) -> None:
        """Write the record that ``attach`` finds the run by, once the backend knows what to find it by."""
        if self._execution.handle:
            RunIndex().add(IndexRecord(self.job, self._backend_name, self._execution.handle))

    @property
    def state(self) -> RunState:
        """What it is doing now, or how it ended."""
        return RunState(self._execution.state())

    @property
    def backend(self) -> str:
        """The name of the backend that it runs on."""
        return self._backend_name

    @property
    def url(self) -> str | None:
        """Ray's dashboard while a run with ``RaySpec(dashboard=True)`` goes on; else the app's page on Modal, if known.

        Whoever has the dashboard's URL can run code in the run's containers.
        """
        return self._execution.url

    @property
    def log_path(self) -> str:
        """Where the whole output is kept."""
        return self._execution.log_path

    def logs(self, follow: bool = False, tail: int | None = None, *, rank: int | None = None) -> Iterator[str]:
        """The output's lines, without their newline; bytes that are no UTF-8 are shown as U+FFFD.

        Args:
            follow: Whether to go on until the run has ended.
            tail: Only so many of the lines that are there now; what is followed comes all the same.
            rank: What this rank's supervisor and Ray wrote, instead of the command's output: the files of the run's
                folder ``ray/RANK``, each below a line with its name. Ray's own are kept when the rank ends.

        Raises:
            RunLost: The run has ended, and what kept its output, such as its volume, is gone.
            SpecError: There is no such rank, or it is to be followed.
            FileNotFoundError: The rank has left nothing, or not yet.
        """
        if rank is not None:
            yield from self._rank_logs(rank, follow, tail)
            return
        try:
            size = self._execution.log_size()
        except FileNotFoundError as error:
            raise RunLost(run_id=self.id, detail=str(error)) from error
        if tail is not None:
            yield from last_lines(self._last_bytes(size, tail), tail)
        elif not follow:
            yield from _lines(self._stored(0, size))
        if follow:
            yield from _lines(self._followed(0 if tail is None else size))

    def _rank_logs(self, rank: int, follow: bool, tail: int | None) -> Iterator[str]:
        if isinstance(rank, bool) or not isinstance(rank, int) or not 0 <= rank < self.job.nodes:
            raise SpecError("rank", rank, f"the run has {self.job.nodes} node(s): give 0 to {self.job.nodes - 1}")
        if follow:
            raise SpecError("follow", follow, "a rank's logs are kept when it ends: leave it out, or leave out rank")
        files = list(self._execution.read_files(f"ray/{rank}"))
        files.sort(key=lambda item: (OWN_LOGS.index(item[0]) if item[0] in OWN_LOGS else len(OWN_LOGS), item[0]))
        lines = itertools.chain.from_iterable(
            (f"==> {name} <==", *_lines(iter([content]))) for name, content in files if content
        )
        yield from lines if tail is None else deque(lines, maxlen=max(0, tail))

    def _followed(self, skip: int) -> Iterator[bytes]:
        for kind, value in self._execution.events():
            if kind == "output":
                yield value[skip:]
                skip = max(0, skip - len(value))

    def _stored(self, offset: int, size: int) -> Iterator[bytes]:
        while offset < size and (data := self._execution.read_log(offset)):
            offset += len(data)
            yield data

    def _last_bytes(self, size: int, lines: int) -> bytes:
        """As much of the log's end as holds that many lines."""
        reach = TAIL_BYTES
        while True:
            data = b"".join(self._stored(max(0, size - reach), size))
            if reach >= size or data.count(b"\n") > lines:
                return data
            reach *= 8

    def events(self) -> Iterator[Event]:
        """What happens in the run: see ``skyrl_modal.backends.Event``."""
        return self._execution.events()

    def wait(self, timeout: float | None = None) -> RunResult:
        """Wait for the run's end.

        Args:
            timeout: Seconds to wait at the most; None for as long as it takes.

        Raises:
            RunTimeout: It has not ended by then. The run goes on.
        """
        try:
            record = self._execution.wait(timeout)
        except TimeoutError as error:
            raise RunTimeout(run_id=self.id, seconds=timeout or 0.0) from error
        return self.to_result(record)

    def result(self) -> RunResult:
        """The result of a run that has ended.

        Raises:
            RunTimeout: It has not ended. The run goes on.
        """
        return self.wait(0)

    def cancel(self, *, now: bool = False) -> None:
        """Ask the run to end: the command gets INT, then TERM, then KILL. One that has ended is left as it is.

        Args:
            now: KILL at once, without time to save.
        """
        self._execution.cancel(now=now)

    def to_result(self, record: Mapping[str, Any], log_tail: bytes | None = None) -> RunResult:
        """The result that a record tells."""
        if log_tail is None:
            try:
                size = self._execution.log_size()
            except FileNotFoundError:  # the record says what became of it
                size = 0
            log_tail = b"".join(self._stored(max(0, size - TAIL_BYTES), size))
        text = "\n".join(last_lines(log_tail, TAIL_LINES))
        return RunResult(
            run_id=self.id,
            returncode=int(record["returncode"]),
            state=RunState(record["state"]),
            attempts=int(record["attempts"]),
            started_at=datetime.fromisoformat(record["started_at"]),
            duration=float(record["duration"]),
            log_path=self.log_path,
            backend=self._backend_name,
            detail=record["detail"],
            log_tail=text,
        )


def runs(limit: int | None = 50) -> list[Run]:
    """The runs that this user started from this machine, the newest first.

    Args:
        limit: How many at the most; None for all.

    Example:
        >>> from skyrl_modal import runs
        >>> [run.state for run in runs(limit=0)]
        []
    """
    records = RunIndex().all()[::-1]
    return [Run._of(record) for record in (records if limit is None else records[:limit])]


def _lines(chunks: Iterator[bytes]) -> Iterator[str]:
    """Whole lines out of chunks that may be cut anywhere, also inside a character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    rest = ""
    for chunk in chunks:
        *whole, rest = (rest + decoder.decode(chunk)).split("\n")
        yield from whole
    rest += decoder.decode(b"", final=True)
    if rest:
        yield rest


def last_lines(data: bytes, count: int) -> list[str]:
    """The last lines of some output."""
    lines = data.decode("utf-8", "replace").split("\n")
    if lines[-1] == "":
        lines.pop()
    return lines[-count:] if count > 0 else []
