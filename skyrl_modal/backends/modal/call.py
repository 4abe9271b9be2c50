"""One call on Modal: whether it has ended, its result, and its cancellation."""

from __future__ import annotations

import asyncio
from typing import Any

import modal
import modal.exception

from skyrl_modal.backends.modal.errors import TRANSIENT_ERRORS, error_text, is_cancellation
from skyrl_modal.backends.modal.limits import container_timeout
from skyrl_modal.backends.modal.retry import MAX_POLL_INTERVAL, POLL_INTERVAL, retry_transient
from skyrl_modal.backends.modal.run_folder import VolumeRunFolder
from skyrl_modal.errors import RecordError
from skyrl_modal.protocol.codec import ProtocolError, decode
from skyrl_modal.protocol.exit_codes import INTERRUPTED, KILLED, LAUNCHER_FAILED, TIMED_OUT
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.result import RunResultRecord
from skyrl_modal.protocol.state import FailureCause, RunState, StopReason

#: Seconds of one request for the result. After it, a new request is sent, whose retries begin with short waits again.
RESULT_POLL_TIMEOUT = 300.0
#: Seconds, beyond the grace period, in which a container that was stopped commits its volumes and writes its result.
RESULT_TIMEOUT = 30.0
#: The same for a call that ended without a request of this process.
UNREQUESTED_RESULT_TIMEOUT = 10.0
#: Seconds after which a run without any file on its volume is considered not started.
START_EVIDENCE_TIMEOUT = 10.0
#: Seconds in which Modal confirms that a call was killed. After them it is left to end with its app.
KILL_TIMEOUT = 4.0


class ModalCall:
    """The call that executes a run.

    Args:
        call_id: Its id on Modal.
        call: The call. The client may not have loaded it, so that it does not know its id.
        job: The run.
        folder: The run's folder, which may hold a result that the call could not return.
    """

    def __init__(self, call_id: str, call: modal.FunctionCall[Any], job: Job, folder: VolumeRunFolder) -> None:
        self.id = call_id
        self._call = call
        self._job = job
        self._folder = folder
        self._is_cancelled = False
        self._killed = asyncio.Event()

    @property
    def logs(self) -> Any:
        """Modal's log of the call."""
        return self._call.logs

    @property
    def is_killed(self) -> bool:
        """Whether this process has killed the call."""
        return self._killed.is_set()

    async def has_ended(self) -> bool:
        """Return whether the call has ended."""
        try:
            await self._call.get.aio(timeout=0)
        except TimeoutError:
            return False
        except TRANSIENT_ERRORS:
            return await self._folder.has_result()
        except modal.exception.AuthError:
            raise
        except modal.exception.Error:
            return True
        return True

    async def cancel(self, *, now: bool, retry: bool) -> None:
        """Request the end of the call.

        Args:
            now: Kill it instead of stopping it with its grace period.
            retry: Whether to repeat the request while Modal cannot be reached.
        """
        self._is_cancelled = True
        if now:
            self._killed.set()
        if retry:
            await retry_transient(self._call.cancel.aio, terminate_containers=now)
        else:
            await self._call.cancel.aio(terminate_containers=now)

    async def wait(self) -> RunResultRecord:
        """Wait for the result: the call's value, else what the supervisor wrote to the volume.

        Raises:
            RecordError: The result is damaged, or was written by a newer version.
        """
        try:
            while True:
                record = await retry_transient(self._poll_result)
                if record is not None:
                    return record
        except modal.exception.AuthError:
            raise
        except modal.exception.Error as error:
            return await self._read_stored_result(error)

    async def _poll_result(self) -> RunResultRecord | None:
        try:
            value = await self._call.get.aio(timeout=RESULT_POLL_TIMEOUT)
        except TimeoutError:
            return None
        try:
            return decode(RunResultRecord, value)
        except ProtocolError as error:
            raise RecordError(f"the value of the call {self.id}", str(error)) from error

    async def wait_or_kill(self) -> RunResultRecord:
        """Like ``wait``. After a kill that Modal does not confirm, return a result that states it."""
        result = asyncio.ensure_future(self.wait())
        killed = asyncio.ensure_future(self._killed.wait())
        try:
            await asyncio.wait([result, killed], return_when=asyncio.FIRST_COMPLETED)
            if not result.done():
                await asyncio.wait([result], timeout=KILL_TIMEOUT)
            if result.done():
                return result.result()
            return RunResultRecord.without_record(
                self._job,
                state=RunState.CANCELLED,
                returncode=KILLED,
                cause=FailureCause.NOT_CONFIRMED,
                stop_reason=StopReason.KILL,
                detail="the run was killed; Modal has not confirmed it",
            )
        finally:
            result.cancel()
            killed.cancel()

    async def _read_stored_result(self, error: modal.exception.Error) -> RunResultRecord:
        """Return the result on the volume, else one that is built from the error of the call.

        For Modal a call may have ended while its container still saves and commits.
        """
        record, has_started = await self._wait_for_stored_result()
        return record or self._result_of_error(error, has_started=has_started)

    async def _wait_for_stored_result(self) -> tuple[RunResultRecord | None, bool]:
        """Wait until the container has had time to write its result.

        Returns:
            The result, None if there is none; and whether the run has started, as far as its volume shows.
        """
        if not self._folder.volume:
            return None, False
        # A result may follow also if nothing was cancelled here: the end of the app or of its caller stops a run too.
        timeout = self._job.limits.grace + (RESULT_TIMEOUT if self._is_cancelled else UNREQUESTED_RESULT_TIMEOUT)
        begin = asyncio.get_running_loop().time()
        has_started, interval = False, POLL_INTERVAL
        while True:
            record = await self._folder.read_result()
            if record is not None:
                return record, True
            has_started = has_started or await self._folder.read_status() is not None
            # A run that has not started leaves no result, however long the wait.
            limit = timeout if has_started else min(timeout, START_EVIDENCE_TIMEOUT)
            if self.is_killed or asyncio.get_running_loop().time() >= begin + limit:
                return None, has_started
            await asyncio.sleep(interval)
            interval = min(2 * interval, MAX_POLL_INTERVAL)

    def _result_of_error(self, error: modal.exception.Error, *, has_started: bool) -> RunResultRecord:
        stop_reason, time_limit = None, None
        if isinstance(error, modal.exception.FunctionTimeoutError):
            state, cause, returncode = RunState.TIMED_OUT, FailureCause.TOTAL_TIMEOUT, TIMED_OUT
            time_limit = container_timeout(self._job.limits)
        elif self._is_cancelled or is_cancellation(error):
            state, cause = RunState.CANCELLED, FailureCause.STOPPED
            returncode = KILLED if has_started or self.is_killed else INTERRUPTED
            stop_reason = StopReason.KILL if self.is_killed else StopReason.CANCELLED
        else:
            state, cause, returncode = RunState.LOST, FailureCause.CONTAINER_DIED, LAUNCHER_FAILED
        return RunResultRecord.without_record(
            self._job,
            state=state,
            returncode=returncode,
            cause=cause,
            stop_reason=stop_reason,
            time_limit=time_limit,
            detail=f"Modal reported: {error_text(error)}",
        )
