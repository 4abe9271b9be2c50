"""One start of the command: its output, its limits, and how it is stopped."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from enum import Enum, auto

from skyrl_modal.container.event_router import EventRouter
from skyrl_modal.container.events import CommandExited, DeadlineReached, Event, StopRequested
from skyrl_modal.container.failures import Failure, Report, StartError, cause_of_stop, describe_error, describe_stop
from skyrl_modal.container.output import CHUNK_SIZE, OutputRecorder
from skyrl_modal.container.process import ChildProcess, open_shell_command
from skyrl_modal.container.process_tree import terminate_all
from skyrl_modal.container.ray_stop import explain_ray_exit
from skyrl_modal.dataclass import dataclass
from skyrl_modal.machine import enlarge_pipe
from skyrl_modal.protocol.exit_codes import INTERRUPTED, LAUNCHER_FAILED, TIMED_OUT, exit_code_of
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.state import FailureCause, NextStart, RunState, StopReason

TYPE_CHECKING = False  # the same as in typing, whose import takes time

if TYPE_CHECKING:
    from typing import Protocol

    from skyrl_modal.container.stall import StallWatch
else:
    Protocol = object

#: Seconds between SIGTERM and SIGKILL for processes that the command has left in the background.
BACKGROUND_GRACE = 2.0
#: Seconds after a failed command in which the loss of a node is still considered its cause. The command may notice the
#: loss earlier than the supervisor of that node, which polls its Ray.
CAUSE_TIMEOUT = 2.5


class StoppedBy(Enum):
    """What ended the command."""

    #: The command itself.
    COMMAND = auto()
    TIMEOUT = auto()
    #: There was neither output nor a new step.
    STALL = auto()
    #: A request to stop the run.
    REQUEST = auto()
    #: A failure of Ray or of another rank.
    FAILURE = auto()


@dataclass(frozen=True, slots=True)
class StopStep:
    """A signal to the command, and the seconds to wait for its exit afterwards; None for no limit."""

    number: signal.Signals
    seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an attempt, or the run, ended. The fields are those of RunResultRecord."""

    state: RunState
    returncode: int
    cause: FailureCause | None = None
    detail: str = ""
    stop_reason: StopReason | None = None
    time_limit: float | None = None
    failed_rank: int | None = None
    next_start: NextStart = NextStart.NONE

    @classmethod
    def of_failure(cls, failure: Failure, returncode: int = LAUNCHER_FAILED) -> Outcome:
        """Return the outcome of a failure."""
        return cls(
            state=RunState.FAILED,
            returncode=returncode,
            cause=failure.cause,
            detail=failure.text,
            failed_rank=failure.rank,
        )

    @classmethod
    def of_stop(cls, reason: StopReason, returncode: int = INTERRUPTED) -> Outcome:
        """Return the outcome of a stop request. A container that ends is followed by another one, which continues."""
        is_preempted = reason is StopReason.CONTAINER_ENDING
        is_over_budget = reason is StopReason.OVER_BUDGET
        return cls(
            state=RunState.OVER_BUDGET if is_over_budget else RunState.CANCELLED,
            returncode=TIMED_OUT if is_over_budget else returncode,
            cause=cause_of_stop(reason),
            detail=describe_stop(reason),
            stop_reason=reason,
            next_start=NextStart.SAME_ATTEMPT if is_preempted else NextStart.NONE,
        )


class FailureSource(Protocol):
    """The cluster below the command."""

    def failure_of(self, event: Event) -> Failure | None:
        """Return the failure that an event means for the running command; None if the command continues."""

    @property
    def ray_exit(self) -> Failure | None:
        """The failure of Ray on this node if it has exited."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptServices:
    """What an attempt uses of its supervisor.

    Attributes:
        events: The supervisor's events.
        output: Records the output.
        cluster: The cluster below the command.
        report: Receives messages with their cause.
        processes: Returns the command's living processes, in whatever session or process group they are.
        stall: What finds out that the attempt is stalled; None for no limit.
    """

    events: EventRouter
    output: OutputRecorder
    cluster: FailureSource
    report: Report
    processes: Callable[[], set[int]]
    stall: StallWatch | None = None


class CommandAttempt:
    """One start of the command.

    Args:
        job: The run.
        env: The command's environment.
        services: What it uses of the supervisor.
        total_deadline: The time of ``time.monotonic()`` at which the run has to end; None for no limit.

    Attributes:
        pid: The command's process id; None before ``run``.
    """

    def __init__(
        self, job: Job, env: Mapping[str, str], services: AttemptServices, *, total_deadline: float | None
    ) -> None:
        self._job = job
        self._env = env
        self._services = services
        self._total_deadline = total_deadline
        self._stopped_by = StoppedBy.COMMAND
        self._stop_reason = StopReason.UNKNOWN
        self._timeout_cause = FailureCause.ATTEMPT_TIMEOUT
        self._failure: Failure | None = None
        self._is_stalled = False
        self.pid: int | None = None

    def run(self) -> Outcome:
        """Run the command to its end, and record its output.

        Raises:
            StartError: It could not be started.
        """
        reader, writer = os.pipe()
        enlarge_pipe(writer, CHUNK_SIZE)
        try:
            with open_shell_command(self._job.command) as (argv, stdin):
                child = ChildProcess(
                    argv,
                    cwd=self._job.workdir,
                    env=self._env,
                    stdin=stdin,
                    output=writer,
                    on_exit=lambda status: self._services.events.put(CommandExited(status)),
                )
        except OSError as error:
            os.close(reader)
            text = f"the command could not be started: {describe_error(error)}"
            raise StartError(Failure(FailureCause.COMMAND_NOT_STARTED, text)) from error
        finally:
            os.close(writer)
        self.pid = child.pid
        services = self._services
        copier = threading.Thread(target=services.output.copy_from, args=(reader,), name="output", daemon=True)
        copier.start()
        status = self._watch(child)
        # End the command's background processes now: the output ends only when all of its writers have exited.
        terminate_all(services.processes, grace=BACKGROUND_GRACE)
        services.output.end_command()
        copier.join()
        return self._outcome(exit_code_of(status))

    def _watch(self, child: ChildProcess) -> int:
        """Wait until the command exits, or stop it. Return its exit status as in ``subprocess.Popen.returncode``."""
        steps: list[StopStep] = []
        time_limit = self._first_deadline()
        stall = self._services.stall
        deadline: float | None = time_limit if stall is None else min(time_limit, stall.begin())
        while True:
            event = self._services.events.get(deadline)
            if isinstance(event, DeadlineReached) and stall is not None and self._stopped_by is StoppedBy.COMMAND:
                stalled_at = stall.deadline()
                if time.monotonic() < min(time_limit, stalled_at):
                    deadline = min(time_limit, stalled_at)
                    continue
                self._is_stalled = stalled_at < time_limit
            if isinstance(event, CommandExited):
                return event.status
            if event == StopRequested(StopReason.KILL):
                if self._stopped_by is StoppedBy.COMMAND:
                    self._stopped_by, self._stop_reason = StoppedBy.REQUEST, StopReason.KILL
                steps = [StopStep(signal.SIGKILL, None)]
            elif self._stopped_by is StoppedBy.COMMAND:
                steps = self._begin_stop(event)
                if not steps:
                    continue
            elif not isinstance(event, DeadlineReached):
                continue
            step = steps.pop(0)
            child.signal_group(step.number)
            if step.number == signal.SIGKILL:
                terminate_all(self._services.processes, grace=0)
            deadline = None if step.seconds is None else time.monotonic() + step.seconds

    def _first_deadline(self) -> float:
        deadline = time.monotonic() + self._job.limits.attempt_timeout
        if self._total_deadline is None or deadline <= self._total_deadline:
            return deadline
        self._timeout_cause = FailureCause.TOTAL_TIMEOUT
        return self._total_deadline

    def _begin_stop(self, event: Event) -> list[StopStep]:
        """Return the steps by which an event stops the command; none if the command continues."""
        report, grace = self._services.report, self._job.limits.grace
        match event:
            case DeadlineReached() if self._is_stalled and self._services.stall is not None:
                self._stopped_by = StoppedBy.STALL
                stall = self._services.stall
                text = f"{stall.text}; writing the stacks of all Python processes, then sending SIGTERM"
                report(f"{text}, SIGKILL follows in {grace:g} s", FailureCause.STALLED)
                stall.write_stacks()
                return stop_sequence(signal.SIGTERM, grace)
            case DeadlineReached():
                self._stopped_by = StoppedBy.TIMEOUT
                text = f"{self._timeout_text}; sending SIGTERM, SIGKILL follows in {grace:g} s"
                report(text, self._timeout_cause)
                return stop_sequence(signal.SIGTERM, grace)
            case StopRequested(reason):
                self._stopped_by, self._stop_reason = StoppedBy.REQUEST, reason
                if reason is StopReason.CONTAINER_ENDING and self._job.limits.ending_grace is not None:
                    grace = min(grace, self._job.limits.ending_grace)
                text = f"stopping the command ({describe_stop(reason)}): sending SIGINT, SIGKILL follows in {grace:g} s"
                report(text, cause_of_stop(reason))
                return stop_sequence(signal.SIGINT, grace)
        self._failure = failure = self._explain(self._services.cluster.failure_of(event))
        if failure is None:
            return []
        self._stopped_by = StoppedBy.FAILURE
        report(f"{failure.summary}; stopping the command", failure.cause)
        return stop_sequence(signal.SIGTERM, grace)

    @property
    def _timeout_text(self) -> str:
        if self._timeout_cause is FailureCause.TOTAL_TIMEOUT:
            return f"limit of {self._time_limit:,.10g} s for all attempts exceeded"
        return f"timeout of {self._time_limit:,.10g} s exceeded"

    @property
    def _time_limit(self) -> float:
        """The limit in seconds that ends this attempt."""
        limits = self._job.limits
        if self._timeout_cause is FailureCause.TOTAL_TIMEOUT and limits.total_timeout is not None:
            return limits.total_timeout
        return limits.attempt_timeout

    def _outcome(self, returncode: int) -> Outcome:
        match self._stopped_by:
            case StoppedBy.TIMEOUT:
                return Outcome(
                    state=RunState.TIMED_OUT,
                    returncode=TIMED_OUT,
                    cause=self._timeout_cause,
                    detail=self._timeout_text,
                    time_limit=self._time_limit,
                )
            case StoppedBy.STALL if (stall := self._services.stall) is not None:
                self._services.output.write_message(stall.stacks)
                return Outcome(
                    state=RunState.TIMED_OUT,
                    returncode=TIMED_OUT,
                    cause=FailureCause.STALLED,
                    detail=stall.text,
                    time_limit=stall.limit,
                )
            case StoppedBy.REQUEST:
                return Outcome.of_stop(self._stop_reason, returncode or INTERRUPTED)
            case StoppedBy.COMMAND if returncode == 0:
                return Outcome(state=RunState.SUCCEEDED, returncode=0)
            case StoppedBy.COMMAND:
                self._failure = self._explain(self._find_cause())
        if self._failure is None:
            return Outcome(state=RunState.FAILED, returncode=returncode, cause=FailureCause.COMMAND_FAILED)
        if self._stopped_by is StoppedBy.FAILURE:
            self._services.output.write_message(self._failure.text)
        return Outcome.of_failure(self._failure, returncode or LAUNCHER_FAILED)

    def _explain(self, failure: Failure | None) -> Failure | None:
        return explain_ray_exit(failure, self._job.command, self._services.processes)

    def _find_cause(self) -> Failure | None:
        """Return the failure of Ray or of a node that made the command fail; None if there was none."""
        services = self._services
        if services.cluster.ray_exit is not None or self._job.nodes == 1:
            return services.cluster.ray_exit
        deadline = time.monotonic() + CAUSE_TIMEOUT
        while True:
            event = services.events.wait_for(lambda event: not isinstance(event, StopRequested), deadline)
            if isinstance(event, DeadlineReached):
                return None
            failure = services.cluster.failure_of(event)
            if failure is not None:
                return failure


def stop_sequence(first: signal.Signals, grace: float) -> list[StopStep]:
    """Return the signals that stop the command, up to SIGKILL at the end of the grace period.

    Args:
        first: SIGINT or SIGTERM. After SIGINT, the second half of the grace period begins with SIGTERM.
        grace: Seconds.

    Example:
        >>> [(step.number.name, step.seconds) for step in stop_sequence(signal.SIGINT, 6.0)]
        [('SIGINT', 3.0), ('SIGTERM', 3.0), ('SIGKILL', None)]
    """
    kill = StopStep(signal.SIGKILL, None)
    if first is signal.SIGINT:
        return [StopStep(signal.SIGINT, grace / 2), StopStep(signal.SIGTERM, grace / 2), kill]
    return [StopStep(signal.SIGTERM, grace), kill]
