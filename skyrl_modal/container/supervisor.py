"""Run one job: start Ray, run the command, stream its output, clean up and write the result.

This is rank 0 on every backend; the other ranks run a RankWorker. Everything that happens arrives as an event in one
queue, and the supervisor's thread waits for nothing else while the command runs. A slow reader of the output can
therefore not delay a timeout.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from skyrl_modal.container.attempt_logs import AttemptLogs
from skyrl_modal.container.command_attempt import AttemptServices, CommandAttempt, Outcome
from skyrl_modal.container.environment import run_environment, secret_values
from skyrl_modal.container.event_router import EventRouter
from skyrl_modal.container.events import ChildExited, Event, StopRequested
from skyrl_modal.container.failures import Failure, RunStopped, StartError, describe_error
from skyrl_modal.container.live_view import LiveView
from skyrl_modal.container.masking import SecretMask
from skyrl_modal.container.output import OutputRecorder
from skyrl_modal.container.process_tree import ProcessScope, reap_orphans
from skyrl_modal.container.run_reports import RunReports, mask_job
from skyrl_modal.container.single_node import SingleNode
from skyrl_modal.container.start_timer import StartTimer
from skyrl_modal.container.unsaved_files import LostPlaces, UnsavedFilesReport, printable
from skyrl_modal.container.workdir import prepare_workdir
from skyrl_modal.dataclass import dataclass, replace
from skyrl_modal.protocol.events import MessageEvent, StateEvent
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.kept_logs import STACKS_LOG
from skyrl_modal.protocol.rank_config import RankConfig
from skyrl_modal.protocol.result import RunResultRecord, UnsavedFolder
from skyrl_modal.protocol.run_folder import OUTPUT_FILE, RunFolder
from skyrl_modal.protocol.state import FailureCause, NextStart, RunState, StopReason
from skyrl_modal.protocol.status import NO_HISTORY, AttemptHistory, StatusRecord

TYPE_CHECKING = False  # the same as in typing, whose import takes time

if TYPE_CHECKING:
    from skyrl_modal.container.lease_store import LeaseStore
    from skyrl_modal.container.ray_cluster import RayCluster
    from skyrl_modal.container.replacement import Replacement
    from skyrl_modal.container.run_checkpoints import RunCheckpoints
    from skyrl_modal.container.stall import StallDetector, StallWatch
    from skyrl_modal.container.usage_meter import UsageMeter

#: States after which what the machine reports is kept, and a further attempt may follow.
_FAILED_STATES = (RunState.FAILED, RunState.TIMED_OUT)


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorServices:
    """How a supervisor reaches the run's caller.

    Attributes:
        live: Receives the command's output.
        emit: Receives messages and states.
        open_url: Returns a URL by which a port of this machine's 127.0.0.1 can be reached.
        create_files: Creates the mounted files, and returns a message about it; None if they exist already.
        lost_places: Returns the folders whose new files are lost with the run; None if there are none.
        commit_logs: Saves the run's folder on its volume while the command runs; None if that is not needed.
        usage: Counts the time of the run's containers; None if the run costs nothing.
        replace_container: Requests another container for this one, whose GPUs do not work; None if there is no other.
        lease_store: The Dict with the leases, on Modal; None on this machine.
    """

    live: LiveView
    emit: Callable[[MessageEvent | StateEvent], None]
    open_url: Callable[[int], str] = "http://127.0.0.1:{}".format
    create_files: Callable[[], str | None] | None = None
    lost_places: LostPlaces | None = None
    commit_logs: Callable[[], None] | None = None
    usage: UsageMeter | None = None
    replace_container: Callable[[], Replacement] | None = None
    lease_store: LeaseStore | None = None


class Supervisor:
    """One run, from its start to its result.

    Args:
        job: The run, with the paths as they are here.
        config: This rank.
        services: How it reaches the caller.
        attempts: Number of attempts that an earlier container made.
        history: What those attempts have reached.
        first_message: A message to write before the output; None for none.
        start_timeout: Seconds in which the command has to start for the first time; None for no limit.
    """

    def __init__(
        self,
        job: Job,
        config: RankConfig,
        services: SupervisorServices,
        *,
        attempts: int = 0,
        history: AttemptHistory = NO_HISTORY,
        first_message: str | None = None,
        start_timeout: float | None = None,
    ) -> None:
        self._job = job
        self._config = config
        self._services = services
        self._attempts = attempts
        self._history = history
        self._first_message = first_message
        self._start_timeout = start_timeout
        self._start_timer: StartTimer | None = None
        self._folder = RunFolder(job.run_folder)
        self._events = EventRouter(reap=self._reap, is_outdated=self._is_outdated)
        self._env = run_environment(job, config)
        self._secrets = SecretMask(secret_values(job, config, self._env))
        reports = RunReports(self._folder, self._secrets, services.emit)
        self._report, self._log = reports.report, reports.log
        self._output = OutputRecorder(self._folder.file(OUTPUT_FILE), services.live, self._report, self._secrets)
        self._scope: ProcessScope | None = None
        self._cluster: RayCluster | SingleNode | None = None
        self._attempt: CommandAttempt | None = None
        self._unsaved_files = UnsavedFilesReport(job, services.lost_places)
        self._logs = AttemptLogs(job, config, self._secrets, note=self._log, commit=services.commit_logs)
        self._checkpoints: RunCheckpoints | None = None
        self._stalls: StallDetector | None = None

    # -- called from other threads and signal handlers ---------------------------------------------------------------

    def request_stop(self, reason: StopReason) -> None:
        """Request the end of the run. It may be called from any thread and from a signal handler."""
        self._events.put(StopRequested(reason))

    def child_exited(self) -> None:
        """Collect the exit status of adopted children. To be called by a handler of SIGCHLD."""
        self._events.put(ChildExited())

    # -- the run -----------------------------------------------------------------------------------------------------

    def run(self) -> RunResultRecord:
        """Run to the end and return the result, which is also written to result.json."""
        started_at, begin = datetime.now(UTC), time.monotonic()
        self._scope = ProcessScope()
        is_failed = True
        try:
            outcome = self._run_attempts(self._scope, begin)
            is_failed = outcome.state in _FAILED_STATES
        except RunStopped as stopped:
            outcome = self._outcome_of_stop(stopped.reason)
        except StartError as error:
            outcome = self._end_by_failure(error.failure)
        except OSError as error:
            outcome = Outcome.of_failure(Failure(FailureCause.SYSTEM_ERROR, describe_error(error)))
            self._report(describe_error(error), FailureCause.SYSTEM_ERROR)
        finally:
            if self._start_timer is not None:
                self._start_timer.stop()
            self._tear_down(self._scope, is_failed=is_failed)
        unsaved = self._report_unsaved_files(outcome)
        self._output.finish()
        result = RunResultRecord(
            run_id=self._job.run_id,
            state=outcome.state,
            returncode=outcome.returncode,
            attempts=self._attempts,
            started_at=started_at.isoformat(),
            duration=round(time.monotonic() - begin, 6),
            cause=outcome.cause,
            stop_reason=outcome.stop_reason,
            time_limit=outcome.time_limit,
            failed_rank=outcome.failed_rank,
            detail=self._secrets.mask_text(outcome.detail),
            output=self._output.record,
            next_start=outcome.next_start,
            unsaved=unsaved,
        )
        if self._services.usage is not None:
            result = self._services.usage.end(result)
        try:
            self._folder.write_result(result)
        except OSError as error:
            self._report(f"result.json could not be written: {describe_error(error)}")
        return result

    def _run_attempts(self, scope: ProcessScope, begin: float) -> Outcome:
        """Run the command until it succeeds, or no further attempt is made here."""
        job, limits = self._job, self._job.limits
        self._folder.create()
        self._folder.write_job(mask_job(job, self._secrets))
        self._start_start_timer()
        if self._services.usage is not None and not self._services.usage.begin(self.request_stop):
            raise RunStopped(StopReason.OVER_BUDGET)
        messages = [None if self._services.create_files is None else self._services.create_files()]
        for message in [*messages, prepare_workdir(job)]:
            if message is not None:
                self._report(message)
        if self._first_message is not None:
            self._output.write_message(self._first_message)
        self._claim_checkpoints()
        self._watch_stalls(scope)
        self._cluster = cluster = self._make_cluster()
        cluster.check_gpus()
        total_deadline = None if limits.total_timeout is None else begin + limits.total_timeout
        while True:
            job = self._resumed_job()
            if not cluster.is_started:
                self._set_state(RunState.PREPARING)
                cluster.start(self._attempts + 1)
            cluster.check_gpus()
            outcome = self._run_attempt(cluster, job, total_deadline)
            is_late = total_deadline is not None and time.monotonic() >= total_deadline
            if outcome.state not in _FAILED_STATES:
                return outcome
            outcome = self._decide(cluster, outcome, is_late=is_late)
            if outcome.next_start is NextStart.NONE:
                return outcome
            if self._services.usage is not None and self._services.usage.is_spent:
                raise RunStopped(StopReason.OVER_BUDGET)
            if cluster.disconnected_ranks or (self._checkpoints is not None and self._checkpoints.needs_new_containers):
                # A lost rank cannot be restarted here; the platform starts the whole cluster again.
                self._write_status(RunState.RUNNING)  # with the history, for the next container
                return outcome
            self._output.write_message(
                f"attempt {self._attempts} ended with exit code {outcome.returncode}; starting again"
            )
            cluster.end_attempt()

    def _claim_checkpoints(self) -> None:
        """Claim the checkpoint folders of the run, as far as they are known.

        Raises:
            StartError: Another run writes to one of them.
        """
        if self._job.checkpoint_folders or self._job.resume is not None:
            from skyrl_modal.container.run_checkpoints import RunCheckpoints  # imported here: most runs have none

            self._checkpoints = RunCheckpoints(self._job, self._services.lease_store, self._report, self._log)
            self._checkpoints.claim()

    def release_checkpoints(self, result: RunResultRecord) -> None:
        """Release the checkpoint folders after the volumes were committed."""
        if self._checkpoints is not None:
            self._checkpoints.release(is_continued=result.next_start is not NextStart.NONE)

    def _resumed_job(self) -> Job:
        """Return the job with the command of the next attempt, which continues from the newest checkpoint.

        Raises:
            StartError: The command could not load it.
        """
        resumed = None if self._checkpoints is None else self._checkpoints.resume(self._attempts + 1)
        if resumed is None:
            return self._job
        from skyrl_modal.container.retries import with_start  # imported here: most runs do not resume

        self._history = with_start(self._history, resumed.step)
        if resumed.message is not None:
            self._output.write_message(resumed.message)
        return replace(self._job, command=resumed.command)

    def _decide(self, cluster: RayCluster | SingleNode, outcome: Outcome, *, is_late: bool) -> Outcome:
        """Return the outcome of a failed attempt, with the next attempt as the next start if one follows."""
        from skyrl_modal.container.retries import Retries  # imported here: most runs do not fail

        retries = Retries(self._job, self._history, [step for step, _ in cluster.steps.values()])
        outcome = retries.decide(outcome, self._attempts, is_late=is_late)
        self._history = retries.history
        if outcome.cause is FailureCause.NO_PROGRESS:
            self._report(outcome.detail, outcome.cause)
        return outcome

    def _watch_stalls(self, scope: ProcessScope) -> None:
        """Prepare to find out that an attempt is stalled, before the first process is started."""
        if self._job.limits.stall is None:
            return
        from skyrl_modal.container.stall import StallDetector  # imported here: most runs have no such limit

        self._stalls = StallDetector(self._job, self._config, self._output, scope.processes)

    def _stall_watch(self, cluster: RayCluster | SingleNode) -> StallWatch | None:
        if self._stalls is None:
            return None

        def keep(text: str) -> None:
            self._logs.keep(self._attempts).keep_text(STACKS_LOG, text)

        return self._stalls.watch(cluster, keep)

    def _start_start_timer(self) -> None:
        """Begin to count the time until the command starts.

        Raises:
            RunStopped: The time is already over: this container started too late.
        """
        if self._start_timeout is None:
            return
        self._start_timer = StartTimer(self._start_timeout, lambda: self.request_stop(StopReason.START_DEADLINE))
        if self._start_timer.has_expired:
            raise RunStopped(StopReason.START_DEADLINE)

    def _outcome_of_stop(self, reason: StopReason) -> Outcome:
        if reason is StopReason.START_DEADLINE:
            from skyrl_modal.protocol.start_deadline import start_deadline_text

            text = start_deadline_text(self._job.limits.start_deadline or 0.0)
            self._report(text, FailureCause.START_DEADLINE)
            return Outcome.of_failure(Failure(FailureCause.START_DEADLINE, text))
        outcome = Outcome.of_stop(reason)
        if reason is StopReason.OVER_BUDGET:
            self._report(outcome.detail, outcome.cause)
        if outcome.next_start is NextStart.SAME_ATTEMPT:
            # The command was not running, so no attempt was interrupted.
            return replace(outcome, next_start=NextStart.PENDING_ATTEMPT)
        return outcome

    def _end_by_failure(self, failure: Failure) -> Outcome:
        """Report a failure before the command, and return its outcome: the end, or another container's start."""
        replacement = None
        if failure.is_of_machine and self._services.replace_container is not None:
            replacement = self._services.replace_container()
            failure = replace(failure, summary=f"{failure.summary}. {replacement.note}")
        outcome = Outcome.of_failure(failure)
        if replacement is not None and replacement.is_granted:
            self._report(failure.text)
            return replace(outcome, next_start=NextStart.PENDING_ATTEMPT)
        self._report(failure.text, failure.cause)
        return outcome

    def _make_cluster(self) -> RayCluster | SingleNode:
        if self._job.ray is None and self._config.nodes == 1:
            return SingleNode(self._job, self._config, dict(self._env))
        from skyrl_modal.container.ray_cluster import ClusterServices, RayCluster  # imported here, since it takes time

        services = ClusterServices(
            events=self._events,
            report=self._report,
            open_url=self._services.open_url,
            keep_logs=self._logs.keep,
            secrets=self._secrets,
            watch_rank=None if self._services.usage is None else self._services.usage.watch_rank,
        )
        return RayCluster(self._job, self._config, dict(self._env), services)

    def _run_attempt(self, cluster: RayCluster | SingleNode, job: Job, total_deadline: float | None) -> Outcome:
        if self._start_timer is not None and not self._start_timer.stop():
            raise RunStopped(StopReason.START_DEADLINE)
        # Record the attempt before it starts, so that it is not repeated if the container dies.
        self._attempts += 1
        self._set_state(RunState.RUNNING)
        self._unsaved_files.begin()
        env = {**cluster.env, "SKYRL_ATTEMPT": str(self._attempts)}
        services = AttemptServices(
            events=self._events,
            output=self._output,
            cluster=cluster,
            report=self._report,
            processes=self._command_processes,
            stall=self._stall_watch(cluster),
        )
        self._attempt = CommandAttempt(job, env, services, total_deadline=total_deadline)
        with self._logs.following(self._attempts):
            outcome = self._attempt.run()
        if outcome.state is not RunState.SUCCEEDED:
            self._logs.end_attempt(self._attempts, outcome.returncode, is_failed=outcome.state in _FAILED_STATES)
        return outcome

    # -- processes ---------------------------------------------------------------------------------------------------

    def _is_outdated(self, event: Event) -> bool:
        return self._cluster is not None and self._cluster.is_outdated(event)

    def _reap(self) -> None:
        reap_orphans(self._awaited_children())

    def _awaited_children(self) -> set[int]:
        """Return the children whose exit status is collected by a thread that waits for it."""
        children = set() if self._cluster is None else set(self._cluster.children)
        if self._attempt is not None and self._attempt.pid is not None:
            children.add(self._attempt.pid)
        return children

    def _command_processes(self) -> set[int]:
        """Return all living processes that the run has started, except for Ray's."""
        processes = set() if self._scope is None else self._scope.processes()
        return processes if self._cluster is None else processes - self._cluster.processes

    def _tear_down(self, scope: ProcessScope, *, is_failed: bool) -> None:
        if is_failed:
            self._logs.record_failure()
        if self._cluster is not None:
            self._cluster.end(is_failed=is_failed)
        refused = scope.terminate()
        self._logs.close()
        if refused:
            self._report(f"these processes of other users are still running and cannot be ended: {sorted(refused)}")
        self._reap()

    # -- reports -----------------------------------------------------------------------------------------------------

    def _report_unsaved_files(self, outcome: Outcome) -> tuple[UnsavedFolder, ...]:
        """Report new files that are lost with the run, and return their folders."""
        found = self._unsaved_files.find(outcome.stop_reason)
        if found.text:
            self._report(found.text)
        return tuple(replace(item, path=self._secrets.mask_text(printable(item.path))) for item in found.folders)

    def _set_state(self, state: RunState) -> None:
        self._write_status(state)
        self._services.emit(StateEvent(state, self._attempts))

    def _write_status(self, state: RunState) -> None:
        url = None if self._cluster is None else self._cluster.url
        usage = self._services.usage
        if usage is not None:  # a commit for the state includes it
            usage.set_attempt(self._attempts)
            usage.write()
        record = StatusRecord(state=state, attempt=self._attempts, dashboard_url=url, history=self._history)
        try:
            self._folder.write_status(record)
        except OSError as error:
            self._report(f"state.json could not be written: {describe_error(error)}")
