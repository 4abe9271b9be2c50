"""A rank other than 0: connect to rank 0, run a Ray node when rank 0 requests it, and exit with rank 0."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from skyrl_modal.container.cluster_readiness import start_timeout
from skyrl_modal.container.environment import ray_session_folder, run_environment, secret_values, stacks_path
from skyrl_modal.container.events import (
    ChildExited,
    Event,
    HeadDisconnected,
    HeadMessageReceived,
    RayNodeExited,
    StopRequested,
)
from skyrl_modal.container.failures import StartError, describe_error
from skyrl_modal.container.log_keeper import LogKeeper
from skyrl_modal.container.masked_logs import append_private, make_private_folder
from skyrl_modal.container.masking import SecretMask
from skyrl_modal.container.process_tree import ProcessScope, reap_orphans
from skyrl_modal.container.rank_connections import Connection, connect_to_rank_zero
from skyrl_modal.container.ray_node import RayFolders, RayNode, require_ray
from skyrl_modal.container.unsaved_files import LostPlaces, UnsavedFilesReport
from skyrl_modal.container.workdir import prepare_workdir
from skyrl_modal.event_queue import EventQueue
from skyrl_modal.protocol.job import Job, RayOptions
from skyrl_modal.protocol.kept_logs import STACKS_LOG
from skyrl_modal.protocol.messages import (
    CommitRequest,
    CommitTurn,
    HeadMessage,
    Hello,
    LogLine,
    RankFailed,
    RankMessage,
    RayExited,
    RayStopped,
    Shutdown,
    Stacks,
    StartRay,
    StepReached,
    StopRay,
    StopRequest,
    WriteStacks,
)
from skyrl_modal.protocol.rank_config import RankConfig
from skyrl_modal.protocol.run_folder import SUPERVISOR_LOG, RunFolder
from skyrl_modal.protocol.state import FailureCause, StopReason

if TYPE_CHECKING:
    from skyrl_modal.container.training_steps import StepReporter

#: Seconds beyond the command's grace period after which a rank that was asked to stop no longer waits for rank 0.
STOP_MARGIN = 30.0
#: Seconds to wait for a turn to commit, and the same for a rank that was asked to stop, which may be killed soon.
COMMIT_TURN_TIMEOUT, ENDING_TURN_TIMEOUT = 90.0, 8.0


class RankWorker:
    """One rank of a run's cluster, other than 0.

    Args:
        job: The run.
        config: This rank.
        report_locally: Receives the messages while rank 0 is not connected.
        create_files: Creates the mounted files, and returns a message about it; None if they exist already.
        lost_places: Returns the folders whose new files are lost with the run; None if there are none.
        commit_logs: Saves the run's folder on its volume while the command runs; None if that is not needed.
    """

    def __init__(
        self,
        job: Job,
        config: RankConfig,
        *,
        report_locally: Callable[[str], None],
        create_files: Callable[[], str | None] | None = None,
        lost_places: LostPlaces | None = None,
        commit_logs: Callable[[], None] | None = None,
    ) -> None:
        self._job = job
        self._config = config
        self._report_locally = report_locally
        self._create_files = create_files
        self._secrets = SecretMask(secret_values(job, config, run_environment(job, config)))
        self._unsaved_files = UnsavedFilesReport(job, lost_places)
        self._events: EventQueue[Event] = EventQueue()
        self._logs = RunFolder(job.run_folder).rank_logs(config.rank)
        self._commit_logs = commit_logs
        self._keeper: LogKeeper | None = None
        self._steps: StepReporter | None = None
        self._scope: ProcessScope | None = None
        self._node: RayNode | None = None
        self._starts = 0
        self._head: Connection | None = None
        self._is_stopping = False

    # -- called from other threads and signal handlers ---------------------------------------------------------------

    def request_stop(self, reason: StopReason) -> None:
        """Request the end of the rank.

        It waits for rank 0, whose command may still use this node, unless the reason is ``StopReason.KILL``.
        """
        self._is_stopping = True
        self._events.put(StopRequested(reason))

    def child_exited(self) -> None:
        """Collect the exit status of adopted children. To be called by a handler of SIGCHLD."""
        self._events.put(ChildExited())

    def close(self) -> None:
        """Close the connection to rank 0 after logs and volumes have been saved."""
        if self._head is not None:
            self._head.close()

    # -- the rank ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Connect to rank 0 and follow its requests to the end. No process of this rank is left afterwards."""
        self._scope = scope = ProcessScope()
        try:
            make_private_folder(self._logs)
            if self._connect():
                self._follow_head()
        except StartError as error:
            self._fail(error.failure.cause, error.failure.text)
        except OSError as error:
            self._fail(FailureCause.SYSTEM_ERROR, describe_error(error))
        finally:
            self._end_ray()
            if self._steps is not None:
                self._steps.stop()
            scope.terminate()
            if self._keeper is not None:
                self._keeper.close()
            unsaved = self._unsaved_files.find()
            if unsaved.text:
                self.report(unsaved.text)

    def run_until_commit(self) -> None:
        """Like ``run``, and wait for the turn to commit the volumes."""
        self.run()
        self._wait_for_commit_turn()

    def _wait_for_commit_turn(self) -> None:
        """Wait until rank 0 lets this rank commit its volumes, so that not all ranks do it at the same time.

        Without rank 0, and after some time, the rank commits without a turn.
        """
        if self._head is None:
            return
        self._send(CommitRequest())
        timeout = ENDING_TURN_TIMEOUT if self._is_stopping else COMMIT_TURN_TIMEOUT
        with contextlib.suppress(queue.Empty):
            self._events.wait_for(
                lambda event: event in (HeadMessageReceived(CommitTurn()), HeadDisconnected()),
                time.monotonic() + timeout,
            )

    def _fail(self, cause: FailureCause, detail: str) -> None:
        self.report(f"cannot continue: {detail}")
        self._send(RankFailed(cause, self._secrets.mask_text(detail)))

    def _connect(self) -> bool:
        """Connect to rank 0. Return False if the rank was asked to stop before."""
        config, timeout = self._config, start_timeout(self._job)
        unpacked, failure = None, None
        try:
            # Rank 0 does the same now. A failure is sent to it when it is connected.
            unpacked = None if self._create_files is None else self._create_files()
        except StartError as error:
            failure = error
        address = (config.addresses[0], config.port)
        hello = Hello(config.tokens.ranks, config.rank, config.gpus, age=self._find_age())
        try:
            self._head = connect_to_rank_zero(
                address, hello, timeout=timeout, put=self._events.put, is_cancelled=lambda: self._is_stopping
            )
        except OSError as error:
            text = f"{config.rank_label(0)} could not be reached within {timeout:g} s: {error}"
            raise OSError(text) from error
        if self._head is None:
            self.report("stopped before rank 0 could be reached")
            return False
        self._log(f"joined {config.rank_label(0)} as {config.rank_label(config.rank)}")
        if failure is not None:
            raise failure
        for message in (unpacked, prepare_workdir(self._job)):
            if message is not None:
                self._log(message)
        return True

    def _find_age(self) -> float | None:
        """Return the seconds since this process started; None for a run that costs nothing."""
        if self._job.rate is None:
            return None
        from skyrl_modal.container.usage_meter import uncounted_age  # imported here: most local runs cost nothing

        return uncounted_age()

    def _follow_head(self) -> None:
        """Handle events until rank 0 requests the end, or is lost."""
        timeout = self._job.limits.grace + STOP_MARGIN
        deadline: float | None = None
        while True:
            try:
                event = self._events.get(deadline)
            except queue.Empty:
                self.report(f"rank 0 did not end within {timeout:g} s")
                return
            match event:
                case ChildExited():
                    reap_orphans(set() if self._node is None else self._node.children)
                case StopRequested(StopReason.KILL):
                    return
                case StopRequested(reason):
                    # Modal may stop one container alone; otherwise rank 0 would notice it only when this rank exits.
                    self._send(StopRequest(reason))
                    deadline = deadline or time.monotonic() + timeout
                case HeadDisconnected():
                    self.close()
                    self._head = None
                    self.report("lost the connection to rank 0: its container or supervisor exited")
                    self._record_failure()
                    return
                case RayNodeExited(start, returncode) if self._node is not None and self._node.start == start:
                    self.report(f"`ray start` exited with code {returncode}")
                    self._send(RayExited(returncode, self._node.log_tail(), self._node.is_stopped))
                case HeadMessageReceived(Shutdown(is_failed)):
                    if is_failed:
                        self._record_failure()
                    return
                case HeadMessageReceived(message):
                    self._handle(message)

    def _handle(self, message: HeadMessage) -> None:
        match message:
            case StartRay():
                self._end_ray()
                try:
                    self._start_ray(message)
                except StartError as error:
                    self._send(RankFailed(error.failure.cause, self._secrets.mask_text(error.failure.text)))
            case WriteStacks():
                self._send(Stacks(self._read_stacks()))
            case StopRay(is_failed):
                if is_failed:
                    self._record_failure()
                self._end_ray()
                self._send(RayStopped())

    def _start_ray(self, message: StartRay) -> None:
        self._unsaved_files.begin()
        job, config = self._job, self._config
        env = {**run_environment(job, config), **message.env}
        ray = require_ray(job.ray or RayOptions(), env)
        self._starts += 1
        keeper = self._keeper = self._keeper or LogKeeper(
            self._logs, config, self._secrets, note=self._log, commit=self._commit_logs
        )
        self._node = RayNode(
            job,
            config,
            ray,
            env,
            RayFolders(ray_session_folder(config), keeper.begin(message.attempt)),
            start=self._starts,
            put=self._events.put,
            secrets=self._secrets,
            keep_logs=keeper.collect,
        )
        if job.limits.stall is not None:
            from skyrl_modal.container.stacks import create_stacks_file  # imported here: most runs have no such limit

            create_stacks_file(stacks_path(job, config))
        self._follow_steps()
        self._log(f"starting a Ray node that joins {message.head_address}")
        self._node.start_worker(message.head_address)

    def _follow_steps(self) -> None:
        """Send rank 0 the training steps of this rank, if a decision depends on them."""
        job = self._job
        if self._steps is not None or (job.resume is None and job.limits.stall is None):
            return
        from skyrl_modal.container.training_steps import StepReporter  # imported here: most runs need no steps

        self._steps = StepReporter(job.run_folder, self._config.rank, lambda step: self._send(StepReached(step)))

    def _read_stacks(self) -> str:
        """Return the stacks of this rank's Python processes, masked."""
        from skyrl_modal.container.stacks import read_stacks  # imported here: few runs stall

        pids = set() if self._scope is None else self._scope.processes()
        text = self._secrets.mask_text(read_stacks(stacks_path(self._job, self._config), pids))
        if self._keeper is not None:
            self._keeper.keep_text(STACKS_LOG, text)
        return text

    def _end_ray(self) -> None:
        if self._node is not None:
            self._node.end()
            self._node = None

    # -- reports -----------------------------------------------------------------------------------------------------

    def _record_failure(self) -> None:
        if self._keeper is not None:
            self._keeper.record_failure()

    def _send(self, message: RankMessage) -> None:
        if self._head is not None:
            self._head.send(message)

    def report(self, text: str) -> None:
        """Report a message, masked: to rank 0 if it is connected, and to this rank's own log."""
        text = self._secrets.mask_text(text)
        if self._head is None:
            self._report_locally(text)
        self._send(LogLine(text))
        self._log(text)

    def _log(self, text: str) -> None:
        """Write a message, masked, to this rank's own log."""
        path = self._logs / SUPERVISOR_LOG
        with contextlib.suppress(OSError), open(append_private(path), "a", encoding="utf-8") as log:
            log.write(f"{self._secrets.mask_text(text)}\n")
