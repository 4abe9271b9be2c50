"""One call on Modal: whether it has ended, its result, and its cancellation."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import modal
import modal.exception

from skyrl_modal.backends.modal.errors import (
    account_refusal_text,
    error_text,
    is_account_refusal,
    is_cancellation,
    is_connection_error,
    is_transient,
    suppressed_client_errors,
)
from skyrl_modal.backends.modal.limits import container_timeout
from skyrl_modal.backends.modal.retry import MAX_POLL_INTERVAL, POLL_INTERVAL, retry_transient
from skyrl_modal.backends.modal.run_folder import VolumeRunFolder
from skyrl_modal.dataclass import replace
from skyrl_modal.errors import RecordError
from skyrl_modal.protocol.codec import ProtocolError, decode
from skyrl_modal.protocol.exit_codes import INTERRUPTED, KILLED, LAUNCHER_FAILED, TIMED_OUT
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.result import RunResultRecord
from skyrl_modal.protocol.state import FailureCause, NextStart, RunState, StopReason

#: Seconds of one request for the result. After it, a new request is sent, whose retries begin with short waits again.
RESULT_POLL_TIMEOUT = 300.0
#: Seconds, beyond the grace period, in which a container that was stopped commits its volumes and writes its result.
RESULT_TIMEOUT = 30.0
#: The same for a call that ended without a request of this process.
UNREQUESTED_RESULT_TIMEOUT = 10.0
#: Seconds after a kill in which the result of a run that ended at the same time becomes visible on its volume.
KILLED_RESULT_TIMEOUT = 1.5
#: Seconds after which a run without any file on its volume is considered not started.
START_EVIDENCE_TIMEOUT = 10.0
#: Seconds in which the container that Modal stops at the account's spend limit writes its result.
REFUSED_RESULT_TIMEOUT = 10.0
#: Characters of an error's text that a result contains.
MAX_ERROR_TEXT = 2_000
#: Seconds in which Modal confirms that a call was killed. After them it is left to end with its app.
KILL_TIMEOUT = 4.0
#: Seconds for writing the result of a call that left none to its volume, for other processes.
WRITE_TIMEOUT = 10.0


class FunctionFailed(Exception):
    """The call ended with an exception of the function.

    The container returns a result for every error of the launcher (``container/function_errors.py``). What is left are
    errors of the import of its modules, and of Modal's runtime. Their classes can be any, and are not to be confused
    with errors of the request for the result.
    """

    def __init__(self, error: BaseException) -> None:
        name, text = type(error).__name__, " ".join(error_text(error).split())
        super().__init__(name if text == name else f"{name}: {text}")


class UnreadableResult(FunctionFailed):
    """The value of the call is no result, or one of a newer version."""


class ModalCall:
    """The call that executes a run.

    Args:
        call_id: Its id on Modal.
        call: The call. The client may not have loaded it, so that it does not know its id.
        job: The run.
        folder: The run's folder, which may hold a result that the call could not return.
        is_new: Whether it was submitted a moment ago.
    """

    def __init__(
        self, call_id: str, call: modal.FunctionCall[Any], job: Job, folder: VolumeRunFolder, *, is_new: bool = False
    ) -> None:
        self.id = call_id
        self._call = call
        self._job = job
        self._folder = folder
        self._is_cancelled = False
        self._was_running = is_new
        self._killed = asyncio.Event()
        self._is_result_missing = False

    @property
    def job(self) -> Job:
        """The run, with the time of its submission if that is known."""
        return self._job

    @property
    def logs(self) -> Any:
        """Modal's log of the call."""
        return self._call.logs

    @property
    def is_killed(self) -> bool:
        """Whether this process has killed the call."""
        return self._killed.is_set()

    @property
    def is_cancelled(self) -> bool:
        """Whether this process has requested the end of the call."""
        return self._is_cancelled

    async def has_ended(self) -> bool:
        """Return whether the call has ended.

        Raises:
            modal.exception.Error: Modal refuses the token, or all work of the account.
        """
        try:
            await self._poll(0)
        except TimeoutError:
            self._was_running = True
            return False
        except modal.exception.AuthError:
            raise
        except Exception as error:
            if is_transient(error):
                return await self._folder.has_result()
            if is_account_refusal(error) and not await self._folder.has_result():
                raise
            return True
        return True

    async def is_late(self) -> bool:
        """Return whether ``wait`` ends the run, since no container has started by the run's deadline."""
        return False

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

        If the run left no result, write it to the volume: other processes would wait for it again.

        Raises:
            RecordError: The result on the volume is damaged, or was written by a newer version.
            modal.exception.Error: Modal refuses the token; or all work of the account, and it is not known whether the
                run has ended before.
        """
        record = await self._wait_for_end()
        await self._store(record)
        return record

    async def _store(self, record: RunResultRecord) -> None:
        if self._is_result_missing:
            self._is_result_missing = False
            await self._folder.write_result(record, timeout=KILL_TIMEOUT if self.is_killed else WRITE_TIMEOUT)

    async def _wait_for_end(self) -> RunResultRecord:
        """Like ``wait``, without writing the result."""
        try:
            while True:
                record = await retry_transient(self._poll_result)
                if record is not None:
                    return record
        except modal.exception.AuthError:
            raise
        except (modal.exception.Error, FunctionFailed) as error:
            refusal = await self._find_account_refusal(error)
            if refusal is not None:
                return await self._result_of_refusal(refusal)
            return await self._read_stored_result(error)

    async def _poll_result(self) -> RunResultRecord | None:
        begin = time.time()  # the clock by which Modal's client ends its wait (1.6.4)
        try:
            value = await self._poll(RESULT_POLL_TIMEOUT)
        except TimeoutError as error:
            self._was_running = True
            if time.time() - begin < RESULT_POLL_TIMEOUT / 2:
                raise FunctionFailed(error) from error
            return None
        try:
            return decode(RunResultRecord, value)
        except ProtocolError as error:
            raise UnreadableResult(error) from error

    async def _poll(self, timeout: float) -> object:
        """Return the value of the call.

        Raises:
            TimeoutError: It has not ended within ``timeout`` seconds.
            FunctionFailed: It ended with an exception that is not of Modal's client.
            Exception: An error of the request, or the client's exception about how the call ended.
        """
        try:
            return await self._call.get.aio(timeout=timeout)
        except (TimeoutError, modal.exception.Error):
            raise
        except Exception as error:
            # The client raises errors of the network as its own (1.6.0 to 1.6.4), so others are the function's.
            if is_connection_error(error):
                raise
            raise FunctionFailed(error) from error

    async def wait_or_kill(self) -> RunResultRecord:
        """Like ``wait``. After a kill that Modal does not confirm, return a result that states it."""
        result = asyncio.ensure_future(self._wait_for_end())
        killed = asyncio.ensure_future(self._killed.wait())
        try:
            await asyncio.wait([result, killed], return_when=asyncio.FIRST_COMPLETED)
            if not result.done():
                await asyncio.wait([result], timeout=KILL_TIMEOUT)
            if result.done():
                record = result.result()
                await self._store(record)
                return record
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

    async def store_killed_result(self) -> None:
        """Wait some seconds for the end of a call that this process has killed, and store its result if it has none."""
        with suppressed_client_errors(), contextlib.suppress(RecordError, FunctionFailed):
            await self.wait_or_kill()

    async def _read_stored_result(self, error: Exception) -> RunResultRecord:
        """Return the result on the volume, else one that is built from the error of the call.

        For Modal a call may have ended while its container still saves and commits.
        """
        record, has_started = await self._wait_for_stored_result()
        # A call whose result is not available any more is neither: its volume may be a new one of the same name.
        self._is_result_missing = record is None and (has_started or is_cancellation(error))
        if record is None:
            return self._result_of_error(error, has_started=has_started)
        if record.stop_reason is StopReason.CONTAINER_ENDING and (self._is_cancelled or is_cancellation(error)):
            # Cancelled between a preemption and the start in the next container, or stopped with its app,
            # which looks like a preemption in the container.
            return replace(
                record,
                cause=FailureCause.STOPPED,
                stop_reason=StopReason.CANCELLED,
                detail=self._describe_cancellation(error),
            )
        return record

    def _describe_cancellation(self, error: Exception) -> str:
        if self._is_cancelled:
            return "cancelled"
        text = str(error).strip()
        origin = "cancelled from elsewhere: by another process, on Modal's dashboard, or by the end of its app"
        return f"{origin} (Modal reported: {text})" if text else origin

    async def _find_account_refusal(self, error: Exception) -> Exception | None:
        """Return the error by which Modal refuses all work of the account; None if it does not.

        At the spend limit Modal stops the account's apps, so that the call may only seem to be cancelled.
        """
        if is_account_refusal(error):
            return error
        if not self._is_cancelled and is_cancellation(error):
            try:
                await self._poll(0)
            except Exception as again:
                return again if is_account_refusal(again) else None
        return None

    async def _result_of_refusal(self, error: Exception) -> RunResultRecord:
        """Return the result of a run that Modal has stopped, since the account's spend limit was reached.

        Raises:
            modal.exception.Error: The volume is refused as well, and the run was not known to be running.
        """
        record = None
        try:
            async with asyncio.timeout(REFUSED_RESULT_TIMEOUT):
                while (record := await self._folder.read_result()) is None:
                    await asyncio.sleep(POLL_INTERVAL)
        except TimeoutError:
            pass
        except modal.exception.Error:
            if not self._was_running:
                raise
        if record is not None and record.stop_reason is None and record.next_start is NextStart.NONE:
            return record  # it ended before
        if record is None:
            record = RunResultRecord.without_record(
                self._job,
                state=RunState.FAILED,
                returncode=LAUNCHER_FAILED,
                cause=FailureCause.SPEND_LIMIT,
                detail="",
            )
        return replace(
            record,
            state=RunState.FAILED,
            returncode=LAUNCHER_FAILED,
            cause=FailureCause.SPEND_LIMIT,
            detail=account_refusal_text(error),
        )

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
            if self.is_killed:
                limit = min(limit, KILLED_RESULT_TIMEOUT)
            if asyncio.get_running_loop().time() >= begin + limit:
                return None, has_started
            await asyncio.sleep(interval)
            interval = min(2 * interval, MAX_POLL_INTERVAL)

    def _result_of_error(self, error: Exception, *, has_started: bool) -> RunResultRecord:
        stop_reason, time_limit, text = None, None, error_text(error)
        if len(text) > MAX_ERROR_TEXT:
            text = f"{text[: MAX_ERROR_TEXT // 2]} ... {text[-MAX_ERROR_TEXT // 2 :]}"
        detail = f"Modal reported: {text}"
        if isinstance(error, modal.exception.FunctionTimeoutError):
            state, cause, returncode = RunState.TIMED_OUT, FailureCause.TOTAL_TIMEOUT, TIMED_OUT
            time_limit = container_timeout(self._job)
        elif self._is_cancelled or is_cancellation(error):
            state, cause = RunState.CANCELLED, FailureCause.STOPPED
            returncode = KILLED if has_started or self.is_killed else INTERRUPTED
            stop_reason = StopReason.KILL if self.is_killed else StopReason.CANCELLED
            detail = self._describe_cancellation(error) if is_cancellation(error) else detail
        elif isinstance(error, UnreadableResult):
            state, cause, returncode = RunState.LOST, FailureCause.UNKNOWN, LAUNCHER_FAILED
            detail = f"the result of the run cannot be read: {text}"
        elif isinstance(error, FunctionFailed | modal.exception.ExecutionError):
            returncode = LAUNCHER_FAILED
            state, cause = RunState.FAILED, FailureCause.NOT_STARTED
            if has_started:
                state, cause = RunState.LOST, FailureCause.SUPERVISOR_DIED
            detail = f"the launcher failed in the container: {text}. Its traceback is in Modal's log of the app"
        else:
            state, cause, returncode = RunState.LOST, FailureCause.CONTAINER_DIED, LAUNCHER_FAILED
        return RunResultRecord.without_record(
            self._job,
            state=state,
            returncode=returncode,
            cause=cause,
            stop_reason=stop_reason,
            time_limit=time_limit,
            detail=detail,
        )
