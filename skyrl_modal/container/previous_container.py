"""What an earlier container of the same run has left, and how this container continues.

Modal starts a call again in another container if the first one was preempted or died. Both have the run's volume.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

from skyrl_modal.container.retries import Decision as RetryDecision
from skyrl_modal.container.retries import Retries, no_progress_text
from skyrl_modal.dataclass import dataclass
from skyrl_modal.protocol.codec import ProtocolError
from skyrl_modal.protocol.exit_codes import LAUNCHER_FAILED
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.result import RunResultRecord
from skyrl_modal.protocol.run_folder import JOB_FILE, RunFolder
from skyrl_modal.protocol.state import FailureCause, NextStart, RunState
from skyrl_modal.protocol.status import NO_HISTORY, AttemptHistory

T = TypeVar("T")

CONTAINER_DIED_MESSAGE = (
    "the container exited without a result while the command ran: out of memory, or its machine failed"
)
MOVED_MESSAGE = "Modal has moved the run to another container"
_CONTINUED = (NextStart.SAME_ATTEMPT, NextStart.PENDING_ATTEMPT, NextStart.NEXT_ATTEMPT)


@dataclass(frozen=True, slots=True)
class Continue:
    """This container starts the command.

    Attributes:
        attempts: Number of attempts that count as made.
        history: What they have reached.
        message: A message to write before the output; None for none.
    """

    attempts: int = 0
    message: str | None = None
    history: AttemptHistory = NO_HISTORY


@dataclass(frozen=True, slots=True)
class Finished:
    """The run has ended, and only its result has not reached the caller."""

    result: RunResultRecord


@dataclass(frozen=True, slots=True)
class Lost:
    """The earlier container died, and no attempt is left."""

    result: RunResultRecord


Decision = Continue | Finished | Lost


class PreviousContainer:
    """The records of an earlier container, if there was one.

    Args:
        job: The run.
        report: Receives a message about a record that cannot be read. Such a record counts as absent.

    Attributes:
        result: The result that it has left; None if there is none.
    """

    def __init__(self, job: Job, report: Callable[[str], None]) -> None:
        self._job = job
        self._folder = RunFolder(job.run_folder)
        self._report = report
        status = self._read(self._folder.read_status)
        self._has_status = status is not None
        self._attempts = 0 if status is None else status.attempt
        self._history = NO_HISTORY if status is None else status.history
        self.result = self._read(self._folder.read_result)

    def _read(self, read: Callable[[], T | None]) -> T | None:
        try:
            return read()
        except (ProtocolError, OSError) as error:
            self._report(f"warning: ignoring a record of an earlier container that cannot be read: {error}")
            return None

    @property
    def is_finished(self) -> bool:
        """Whether the run has ended, so that no container continues it."""
        return self.result is not None and self.result.next_start not in _CONTINUED

    @property
    def has_started(self) -> bool:
        """Whether an earlier container has started the command, as far as the records show it."""
        return self._attempts > 0

    @property
    def was_replaced(self) -> bool:
        """Whether this container replaces one whose GPUs did not work."""
        return self.result is not None and self.result.is_replaced

    @property
    def may_run(self) -> bool:
        """Whether the records show an earlier container that has not ended, as far as they show it."""
        return self.result is None and self._has_status

    def decide(self, *, was_ending: bool = False) -> Decision:
        """Return what this container has to do.

        Args:
            was_ending: Whether the platform ended the earlier container, which was killed before it wrote its result.
        """
        result, attempts, history = self.result, self._attempts, self._history
        if result is None and attempts == 0:
            return Continue()
        if result is None and was_ending:
            return Continue(attempts - 1, f"{MOVED_MESSAGE} before the command had ended; starting again", history)
        if result is None:
            return self._decide_after_death()
        match result.next_start:
            case NextStart.SAME_ATTEMPT:
                # The interrupted attempt does not count.
                return Continue(max(0, attempts - 1), f"{MOVED_MESSAGE}; starting again", history)
            case NextStart.PENDING_ATTEMPT if self.was_replaced:
                return Continue(attempts, history=history)  # the command has not noticed it
            case NextStart.PENDING_ATTEMPT:
                return Continue(attempts, f"{MOVED_MESSAGE}; starting again", history)
            case NextStart.NEXT_ATTEMPT:
                cause = (
                    f"{result.cause}" if result.failed_rank is None else f"{result.cause}, rank {result.failed_rank}"
                )
                message = f"attempt {attempts} ended with exit code {result.returncode} ({cause}); starting again"
                return Continue(attempts, message, history)
        return Finished(result)

    def _decide_after_death(self) -> Decision:
        """Return what follows after a container that died while the command ran."""
        retries = Retries(self._job, self._history)
        match retries.count(self._attempts):
            case RetryDecision.REPEAT:
                message = f"attempt {self._attempts} ended: {CONTAINER_DIED_MESSAGE}; starting again"
                return Continue(self._attempts, message, retries.history)
            case RetryDecision.END_WITHOUT_PROGRESS:
                text = f"{no_progress_text(retries.history)}; the last one ended with: {CONTAINER_DIED_MESSAGE}"
                return Lost(self._lost_result(RunState.FAILED, FailureCause.NO_PROGRESS, text))
        return Lost(self._lost_result())

    def remove_result(self) -> None:
        """Remove the earlier result, so that no reader considers the run ended."""
        self._folder.remove_result()

    def _lost_result(
        self,
        state: RunState = RunState.LOST,
        cause: FailureCause = FailureCause.CONTAINER_DIED,
        detail: str = CONTAINER_DIED_MESSAGE,
    ) -> RunResultRecord:
        try:
            started_at = datetime.fromtimestamp((self._folder.path / JOB_FILE).stat().st_mtime, UTC)
        except OSError:
            started_at = None
        return RunResultRecord.without_record(
            self._job,
            state=state,
            returncode=LAUNCHER_FAILED,
            cause=cause,
            detail=detail,
            attempts=self._attempts,
            started_at=started_at,
        )
