"""A run on Modal: its start, and what its caller can ask of it."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any, Self, TypeVar

import modal
import modal.exception

from skyrl_modal.backends.base import Handle, Progress, StoredFile
from skyrl_modal.backends.modal.app import RunApp
from skyrl_modal.backends.modal.call import ModalCall
from skyrl_modal.backends.modal.checks import check_token
from skyrl_modal.backends.modal.deadline_call import DeadlineCall
from skyrl_modal.backends.modal.errors import translate_error, translated_client_errors
from skyrl_modal.backends.modal.event_channel import EventChannel
from skyrl_modal.backends.modal.event_loop import event_loop, wait_for_future
from skyrl_modal.backends.modal.log_follower import LogFollower, output_location
from skyrl_modal.backends.modal.preflight import connect
from skyrl_modal.backends.modal.run_folder import VolumeRunFolder
from skyrl_modal.backends.modal.run_start import ModalRunStart
from skyrl_modal.backends.modal.start_progress import StartProgress
from skyrl_modal.backends.modal.stored_output import LogCopy, StoredOutput
from skyrl_modal.backends.output_tail import skip_output
from skyrl_modal.errors import RecordError, SkyRLModalError
from skyrl_modal.protocol.events import OutputEvent, ResultEvent, RunEvent
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.result import RunResultRecord
from skyrl_modal.protocol.start_deadline import with_submission_time
from skyrl_modal.protocol.state import RunState

T = TypeVar("T")

#: Seconds that one request for the result may take at least: ``wait(0)`` still sends one.
MIN_RESULT_TIMEOUT = 2.0


class ModalExecution:
    """A run on Modal, started by this process or attached to by call id.

    Args:
        job: The run.
        call: The call; for a run that this process starts, when it has been submitted.
        start: The start, for a run that this process starts.
        handle: What ``ModalBackend.attach`` finds the run by, for a run that was started before.

    Attributes:
        job: The run.
    """

    def __init__(
        self,
        job: Job,
        call: concurrent.futures.Future[ModalCall],
        *,
        start: ModalRunStart | None = None,
        handle: Handle | None = None,
    ) -> None:
        self.job = job
        self._call = call
        self._start = start
        self._handle: Handle = handle or {}
        self._folder = VolumeRunFolder(job)
        self._result: concurrent.futures.Future[RunResultRecord] | None = None
        gpus = f"{job.gpus_per_node} GPUs" if job.gpus_per_node else "a container"
        self._progress = StartProgress(gpus) if start is None else start.progress
        self._output: StoredOutput | LogCopy | None = None

    @classmethod
    def started(cls, run_app: RunApp, *, owned: bool) -> Self:
        """Begin to start a run; ``wait_started`` waits until it has been submitted."""
        start = ModalRunStart(run_app, owned=owned)
        return cls(run_app.job, start.call, start=start)

    @classmethod
    def attached(cls, job: Job, handle: Handle) -> Self:
        """Return a run that was started before.

        Args:
            job: The run.
            handle: What ``handle`` was when it was started.

        Raises:
            BackendUnavailable: There is no token.
            RecordError: The handle was not created by this backend.
        """
        call_id = handle.get("call_id")
        if not isinstance(call_id, str):
            raise RecordError(f"the handle of run {job.run_id}", "it was not created by the Modal backend")
        check_token()
        with translated_client_errors():
            function_call: modal.FunctionCall[Any] = modal.FunctionCall.from_id(call_id)
        call: concurrent.futures.Future[ModalCall] = concurrent.futures.Future()
        if "submitted_at" in handle:
            job = with_submission_time(job, handle["submitted_at"])
        call.set_result(DeadlineCall(call_id, function_call, job, VolumeRunFolder(job)))
        return cls(job, call, handle=handle)

    @property
    def handle(self) -> Handle:
        """The call's id, and the token of Ray's dashboard if the run has one; empty before the run is submitted."""
        return self._handle if self._start is None else self._start.handle

    @property
    def url(self) -> str | None:
        """URL of Ray's dashboard while it runs, else of the app's page if it is known."""
        call = self._submitted_call()
        if call is not None and self.job.ray is not None and self.job.ray.dashboard:
            status = self._wait_for(self._folder.read_status())
            if status is not None and status.dashboard_url and not self._wait_for(call.has_ended()):
                return status.dashboard_url
        return None if self._start is None else self._start.url

    @property
    def log_path(self) -> str:
        """Description of where output.log is."""
        return output_location(self.job, self._folder)

    def wait_started(self) -> None:
        """Wait until the run has been submitted to Modal.

        Raises:
            SkyRLModalError: Modal did not accept it.
        """
        wait_for_future(self._call)

    def progress(self) -> Progress | None:
        """Return what the run waits for now: the steps of its start, or a container; None for nothing."""
        return self._progress.progress()

    def take_lines(self) -> Sequence[str]:
        """Return the lines of the image's build since the last call."""
        return self._progress.take_lines()

    def events(self) -> Iterator[RunEvent]:
        """Yield what happens in the run, live. An owned run is followed once, another from its beginning each time."""
        if self._start is not None and self._start.owned:
            yield from self._start.channel
            return
        self._connect()
        channel = EventChannel(event_loop())
        follower = self._follower(wait_for_future(self._call))
        following = asyncio.run_coroutine_threadsafe(follower.follow_to_end(channel), event_loop())
        try:
            yield from channel
        finally:
            following.cancel()

    def events_from(self, offset: int) -> Iterator[RunEvent]:
        """Like ``events``, without the first bytes of the output, as ``log_size`` has counted them.

        The output of a run that had ended by then is read from output.log, byte for byte.
        """
        if not isinstance(self._output, StoredOutput):
            yield from skip_output(self.events(), offset)
            return
        while data := self.read_log(offset):
            offset += len(data)
            yield OutputEvent(data)
        yield ResultEvent(self.wait())

    def log_size(self) -> int:
        """Return the size of the output that is available now. ``read_log`` reads that output."""
        return self._find_output().size

    def _find_output(self) -> StoredOutput | LogCopy:
        follower = self._follower(wait_for_future(self._call))
        self._output = self._wait_for(follower.find_output())
        return self._output

    def read_log(self, offset: int) -> bytes:
        """Return a part of the output from an offset on, as it was at the last call of ``log_size``."""
        return self._wait_for((self._output or self._find_output()).read(offset))

    def read_last_lines(self, count: int) -> bytes | None:
        """Return the last lines from the end of Modal's log; None if the run has ended, or they are not at its end."""
        return self._wait_for(self._follower(wait_for_future(self._call)).read_last_lines(count))

    def list_files(self, folder: str) -> Sequence[StoredFile]:
        """Return the files below a folder of the run's folder on its volume, sorted by path, as they were committed.

        Raises:
            FileNotFoundError: There is no such folder, or not yet.
        """
        found = self._wait_for(self._folder.list_files(folder))
        return [StoredFile(path, size) for path, size in sorted(found.items())]

    def read_file(self, path: str) -> bytes:
        """Return the content of a file of the run's folder on its volume.

        Raises:
            FileNotFoundError: There is no such file.
        """
        content = self._wait_for(self._folder.read(path))
        if content is None:
            raise FileNotFoundError(f"{path} does not exist in the run's folder on its volume")
        return content

    def read_part(self, path: str, offset: int, limit: int) -> bytes:
        """Return a part of a file of the run's folder on its volume; empty at its end. What is before it is read too.

        Raises:
            FileNotFoundError: There is no such file.
        """
        content = self._wait_for(self._folder.read(path, limit=offset + limit))
        if content is None:
            raise FileNotFoundError(f"{path} does not exist in the run's folder on its volume")
        return content[offset:]

    def state(self) -> RunState:
        """Return the run's current state. A run that no container has started by its deadline is ended."""
        call = self._submitted_call()
        if call is None:
            return RunState.PENDING
        if (self._result is None or not self._result.done()) and not self._wait_for(call.has_ended()):
            known = self._start.channel.state if self._start is not None else None
            state = known or self._wait_for(self._follower(call).read_state())
            if state is not RunState.PENDING or not self._wait_for(call.is_late()):
                return state
        return self.wait().state

    def wait(self, timeout: float | None = None) -> RunResultRecord:
        """Wait for the end of the run.

        Raises:
            TimeoutError: The run has not ended within ``timeout`` seconds.
        """
        self._connect()
        call = wait_for_future(self._call)
        if self._result is None or (self._result.done() and self._result.exception() is not None):
            self._result = self._submit(call.wait())
        try:
            return wait_for_future(self._result, None if timeout is None else max(timeout, MIN_RESULT_TIMEOUT))
        except TimeoutError:
            raise TimeoutError(f"run {self.job.run_id} has not ended within {timeout:g} s") from None

    def cancel(self, *, now: bool = False) -> None:
        """Stop the run, with its grace period or immediately; abandon its start if it is not submitted yet."""
        call = self._submitted_call()
        if call is None:
            if self._start is not None:
                self._start.cancel()
            return
        self._connect()
        is_owned = self._start is not None and self._start.owned
        # An owned run is followed: its end arrives as an event, so this need not wait for Modal.
        cancelling = self._submit(call.cancel(now=now, retry=is_owned))
        if not is_owned:
            wait_for_future(cancelling)
            if now:
                wait_for_future(self._submit(call.store_killed_result()))

    def _submitted_call(self) -> ModalCall | None:
        """Return the call; None if the run has not been submitted, or could not be."""
        if not self._call.done() or self._call.exception() is not None:
            return None
        return self._call.result()

    def _follower(self, call: ModalCall) -> LogFollower:
        app_id = self.handle.get("app_id")
        app = app_id if isinstance(app_id, str) else None
        return LogFollower(call, call.job, self._folder, app, self._progress)

    def _submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        return asyncio.run_coroutine_threadsafe(self._translate_errors(work), event_loop())

    def _wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            self._connect()
        except BaseException:
            work.close()
            raise
        return wait_for_future(self._submit(work))

    def _connect(self) -> None:
        """Check that Modal is reachable, for a run that this process did not start.

        Afterwards, requests wait until an outage ends. Without a first response, the cause is rather this machine's
        network.
        """
        if self._start is None:
            connect()

    async def _translate_errors(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return await work
        except (FileNotFoundError, SkyRLModalError):
            raise
        except Exception as error:
            translated = await translate_error(error, self.job)
            if translated is error:
                raise
            raise translated from error
