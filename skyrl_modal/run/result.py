"""Results of runs."""

from __future__ import annotations

from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from skyrl_modal.dataclass import dataclass, field
from skyrl_modal.errors import CommandFailed, RunCancelled, RunLost, RunTimeout
from skyrl_modal.protocol.result import RunResultRecord, UnsavedFolder
from skyrl_modal.protocol.state import FailureCause, RunState, StopReason
from skyrl_modal.run.log_lines import TAIL_LINES, last_lines

if TYPE_CHECKING:
    from skyrl_modal.findings import Diagnosis
    from skyrl_modal.views.chart import Chart


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """How a run ended.

    Attributes:
        run_id: The run's id; empty for a run of ``Launcher.map`` that could not be started.
        returncode: The command's exit code; 128+N for signal N; 124 for a run that was stopped at a time limit; 125 for
            a run whose command was not started, or that was lost.
        state: A final state.
        cause: Why the run did not succeed; None if it succeeded.
        stop_reason: Why the run was asked to stop; None if it was not.
        attempts: Number of times that the command was started.
        started_at: When the run started in its container, in UTC.
        duration: Seconds from then to its end, including the start and stop of Ray.
        log_path: Where the complete output is stored.
        backend: The name of the backend that executed it.
        detail: Description of the cause, for people.
        log_tail: The last lines of the output.
        time_limit: The exceeded limit of a run in state ``timed_out``, in seconds; else None.
        unsaved: Folders with new files that were in no volume, and were lost with the run.
        cost: What the containers of all attempts cost, in US dollars; None if that is not known. A local run costs
            nothing unless ``Launcher.rate`` is given.
        container_seconds: The time of all containers together; None if it was not counted, as for a run that costs
            nothing.
    """

    run_id: str
    returncode: int
    state: RunState
    cause: FailureCause | None = None
    stop_reason: StopReason | None = None
    attempts: int
    started_at: datetime
    duration: float
    log_path: str
    backend: str
    detail: str = ""
    log_tail: str = field(default="", repr=False)
    time_limit: float | None = None
    unsaved: tuple[UnsavedFolder, ...] = ()
    cost: float | None = None
    container_seconds: float | None = None

    @classmethod
    def from_record(
        cls, record: RunResultRecord, *, backend: str, log_path: str = "", output_tail: bytes = b""
    ) -> Self:
        """Build a result from a result record.

        Args:
            record: The record.
            backend: The name of its backend.
            log_path: Where its output is stored.
            output_tail: The end of its output.
        """
        return cls(
            run_id=record.run_id,
            returncode=record.returncode,
            state=record.state,
            cause=record.cause,
            stop_reason=record.stop_reason,
            attempts=record.attempts,
            started_at=datetime.fromisoformat(record.started_at),
            duration=record.duration,
            log_path=log_path,
            backend=backend,
            detail=_detail(record),
            log_tail="\n".join(last_lines(output_tail, TAIL_LINES)),
            time_limit=record.time_limit,
            unsaved=record.unsaved,
            cost=record.cost,
            container_seconds=record.container_seconds,
        )

    @property
    def succeeded(self) -> bool:
        """Whether the command completed and exited with 0."""
        return self.state is RunState.SUCCEEDED

    @cached_property
    def diagnosis(self) -> Diagnosis | None:
        """Why the run failed, by its logs: cause, evidence and remedy. None if it succeeded.

        The logs are read when this is first accessed. Those that cannot be read then are left out.
        """
        if self.succeeded:
            return None
        from skyrl_modal.run.diagnosis import diagnose_run  # a run that succeeds does not need it

        return diagnose_run(self)

    def __bool__(self) -> bool:
        """Return whether the run succeeded."""
        return self.succeeded

    def _repr_html_(self) -> str:
        """Return the result for a notebook."""
        from skyrl_modal.views.notebook import rows_to_html  # only a notebook needs it

        rows = [
            ("exit code", self.returncode),
            ("cause", self.cause or ""),
            ("detail", self.detail),
            ("run", self.run_id),
            ("attempts", self.attempts),
            ("started", f"{self.started_at:%Y-%m-%d %H:%M:%S} UTC"),
            ("duration", f"{self.duration:,.1f} s"),
            ("log", self.log_path),
        ]
        return rows_to_html(rows, state=self.state, tail=self.log_tail)

    def plot(self, *keys: str) -> Chart:
        """Return a chart of metrics, like ``Run.plot``.

        Raises:
            RunNotFound: The record of the run was removed, or the run was not started.
        """
        from skyrl_modal.run.handle import Run

        return Run.attach(self.run_id).plot(*keys)

    def check_returncode(self) -> None:
        """Raise the exception that describes how the run ended. Do nothing if it succeeded.

        Raises:
            CommandFailed: The command exited with another code than 0, or could not be started.
            RunTimeout: The run was stopped at a time limit.
            RunCancelled: It was cancelled.
            RunLost: It ended without a result.
        """
        facts: dict[str, Any] = {"run_id": self.run_id, "detail": self.detail, "log_tail": self.log_tail}
        if self.state is RunState.TIMED_OUT:
            raise RunTimeout(**facts, returncode=self.returncode, seconds=self.time_limit or 0.0)
        if self.state is RunState.CANCELLED:
            raise RunCancelled(**facts, returncode=self.returncode)
        if self.state in (RunState.LOST, RunState.UNKNOWN):
            raise RunLost(**facts)
        if self.state is not RunState.SUCCEEDED:
            raise CommandFailed(**facts, returncode=self.returncode)


class ResultList(list[RunResult]):
    """A list of results, which a notebook shows as a table."""

    def _repr_html_(self) -> str:
        from skyrl_modal.views.notebook import table_to_html  # only a notebook needs it

        rows = [
            (result.run_id, result.state, result.returncode, f"{result.duration:,.1f} s", result.detail)
            for result in self
        ]
        return table_to_html(("run", "state", "exit code", "duration", "detail"), rows)


def _detail(record: RunResultRecord) -> str:
    """Return the description of the cause, and what of the output or of the volumes could not be stored."""
    texts = [record.detail]
    texts += [text for text in (record.output.error, record.volume_error) if text and text not in record.detail]
    return "\n".join(filter(None, texts))


def result_to_json(result: RunResult) -> dict[str, Any]:
    """Return a result as data that ``json.dumps`` accepts, with the names of its attributes as keys."""
    from skyrl_modal.protocol.codec import encode  # imported here, since most callers print no JSON

    return {**encode(result), "started_at": result.started_at.isoformat()}
