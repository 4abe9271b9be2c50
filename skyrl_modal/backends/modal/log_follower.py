"""Following a call on Modal: its output and messages live, then its result."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import datetime

import modal.exception

from skyrl_modal.backends.modal.app_log import CLOCK_TOLERANCE, AppLog
from skyrl_modal.backends.modal.call import KILL_TIMEOUT, ModalCall
from skyrl_modal.backends.modal.container_wait import ContainerWait
from skyrl_modal.backends.modal.errors import TRANSIENT_ERRORS, error_text, is_account_refusal, translate_error
from skyrl_modal.backends.modal.event_channel import EventChannel
from skyrl_modal.backends.modal.log_stream import LogStream, stream_digest
from skyrl_modal.backends.modal.retry import POLL_INTERVAL, report_waits, retry_errors, retry_transient
from skyrl_modal.backends.modal.run_folder import VolumeRunFolder
from skyrl_modal.backends.modal.start_progress import StartProgress
from skyrl_modal.backends.modal.stored_output import LogCopy, StoredOutput
from skyrl_modal.backends.output_tail import last_lines_of
from skyrl_modal.protocol.events import ResultEvent
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.log_lines import parse_state_line
from skyrl_modal.protocol.result import RunResultRecord, StreamDigest
from skyrl_modal.protocol.start_deadline import submission_time
from skyrl_modal.protocol.state import RunState

#: Seconds without output after which the rest of the output, which should follow the result, is fetched instead.
LOG_CATCH_UP_TIMEOUT = 10.0

#: Number of entries of Modal's log that are fetched for the last lines, at the beginning and at most (the limit of
#: modal 1.6.4).
MIN_TAIL_ENTRIES = 100
MAX_TAIL_ENTRIES = 20_000
#: Number of entries at the end of Modal's log that are searched for the run's state.
STATE_ENTRIES = 20

#: Tasks that read a log. Modal's client cannot close a stream that waits (1.6.4), so they are not cancelled: they end
#: soon after the call, and asyncio itself keeps only weak references to tasks.
_reading_tasks: set[asyncio.Future[None]] = set()


class LogFollower:
    """Forwards what happens in a call.

    Args:
        call: The call.
        job: The run.
        folder: The run's folder, which holds the complete output when the run has ended.
        app: The app of the call, or its id; None if it is not known.
        progress: Receives what the run waits for; None to discard it.
    """

    def __init__(
        self,
        call: ModalCall,
        job: Job,
        folder: VolumeRunFolder,
        app: modal.App | str | None = None,
        progress: StartProgress | None = None,
    ) -> None:
        self._call = call
        self._job = job
        self._folder = folder
        self._app = app
        self._progress = progress or StartProgress("a container")

    async def follow(self, channel: EventChannel) -> None:
        """Forward output and messages live, then the missing end of the output if there is one, then the result."""
        with report_waits(channel.message):
            await self._follow(channel)

    async def _follow(self, channel: EventChannel) -> None:
        submitted_at = submission_time(self._job)
        app_log = AppLog(self._app, submitted_at)
        wait = ContainerWait(app_log, channel, self._progress, submitted_at, self._has_started)
        stream = LogStream(channel, wait)
        waiting = asyncio.ensure_future(wait.report())
        reading = asyncio.ensure_future(self._read_log(stream, channel))
        _reading_tasks.add(reading)
        reading.add_done_callback(_reading_tasks.discard)
        try:
            record = await self._call.wait_or_kill()
            waiting.cancel()
            if self._is_unexpected(record):
                await wait.report_rest()
            expected = record.output.live
            if expected is not None:
                await stream.wait_until_complete(expected, LOG_CATCH_UP_TIMEOUT)
            if expected is None or not stream.is_complete(expected):
                await self._forward_missing_output(stream, channel, expected)
        finally:
            waiting.cancel()
            self._progress.end()
            stream.is_finished = True
            channel.close()
        stream.flush()
        channel.put(ResultEvent(record))

    async def _has_started(self) -> bool:
        return await self._folder.read_status() is not None

    def _is_unexpected(self, record: RunResultRecord) -> bool:
        """Return whether Modal may have ended the run, and its lines may explain why."""
        if record.state is RunState.CANCELLED:
            return not self._call.is_cancelled
        return record.state is RunState.LOST

    async def follow_to_end(self, channel: EventChannel) -> None:
        """Like ``follow``, and finish the channel, with this package's error if it fails."""
        try:
            await self.follow(channel)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            channel.finish(await translate_error(error, self._job))
        else:
            channel.finish()

    async def _read_log(self, stream: LogStream, channel: EventChannel) -> None:
        """Read the call's log until the stream is finished; after a lost connection, again from its beginning."""
        reader = _LogReader(self._call, stream, channel)
        while not stream.is_finished:
            await retry_errors((modal.exception.Error, OSError), reader.read)
            await asyncio.sleep(POLL_INTERVAL)

    async def _forward_missing_output(
        self, stream: LogStream, channel: EventChannel, expected: StreamDigest | None
    ) -> None:
        fetching = asyncio.ensure_future(self._fetch_missing_output(stream, channel, expected))
        _, unfinished = await asyncio.wait([fetching], timeout=KILL_TIMEOUT if self._call.is_killed else None)
        if unfinished:
            fetching.cancel()
            channel.warning("the end of the output could not be fetched")
        else:
            fetching.result()

    async def _fetch_missing_output(
        self, stream: LogStream, channel: EventChannel, expected: StreamDigest | None
    ) -> None:
        """Forward the part of the output that the log did not bring: from output.log, else from Modal's stored log.

        Args:
            stream: The output that was forwarded.
            channel: Receives a warning if it cannot be completed.
            expected: The complete output; None if the container died before it could report it. Then everything that is
                stored is forwarded.
        """
        for fetch in (self._read_output_text, self._fetch_stored_log):
            try:
                text = await fetch()
            except modal.exception.Error:  # Modal refuses the volume; the result must reach the caller
                continue
            if text is None or (expected is not None and stream_digest(text) != expected):
                continue
            if stream.add_missing_end(text):
                return
        stream.flush()
        location = output_location(self._job, self._folder)
        channel.warning(f"the output shown above is incomplete. The complete output is in {location}")

    async def read_state(self) -> RunState:
        """Return the state of a run that has not ended, from its volume, else from its log.

        The log is requested only if the volume does not show that the command runs: a run may have no writable volume,
        or a commit may be late or have failed. The log of a call that is only known by its id is all there is.
        """
        status = await self._folder.read_status()
        if status is not None and status.state is RunState.RUNNING:
            return status.state
        logged = await self._read_logged_state()
        return logged or (RunState.PENDING if status is None else status.state)

    async def _read_logged_state(self) -> RunState | None:
        """Return the state that the end of Modal's log shows; None if it shows none."""
        state = None
        with contextlib.suppress(*TRANSIENT_ERRORS):
            async for entry in self._call.logs.tail.aio(entries=STATE_ENTRIES):
                if entry.source == "stdout":
                    state = RunState.RUNNING
                elif entry.source == "stderr":
                    for line in entry.message.split("\n"):
                        reported = parse_state_line(line)
                        state = state if reported is None else reported[0]
        return state

    async def find_output(self) -> StoredOutput | LogCopy:
        """Return the output that is available now: output.log if the run has ended, else Modal's log."""
        stored = await StoredOutput.find(self._folder) if await self._call.has_ended() else None
        return await retry_transient(self._copy_stored_log) if stored is None else stored

    async def _copy_stored_log(self) -> LogCopy:
        return await LogCopy.of(self._stored_log())

    async def read_last_lines(self, count: int) -> bytes | None:
        """Return the last lines of a run that has not ended; None if it has, or if Modal's log is needed as a whole.

        An entry of Modal's log is a piece of output, of one or more lines or less than one.
        """
        if count <= 0:
            return b""
        if await self._call.has_ended():
            return None
        entries = min(max(count, MIN_TAIL_ENTRIES), MAX_TAIL_ENTRIES)
        while True:
            tail = self._call.logs.tail.aio(entries=entries, source="stdout")
            try:
                texts = [entry.message async for entry in tail]
            except TRANSIENT_ERRORS:
                return None
            content = "".join(texts).encode("utf-8", "replace")
            if len(texts) < entries or content.count(b"\n") > count:
                return last_lines_of(content, count)
            if entries == MAX_TAIL_ENTRIES:
                return None
            entries = min(8 * entries, MAX_TAIL_ENTRIES)

    async def _read_output_text(self) -> str | None:
        content = await self._folder.read_output()
        return None if content is None else content.decode("utf-8", "replace")

    async def _fetch_stored_log(self) -> str | None:
        try:
            return "".join([text async for text in self._stored_log()])
        except TRANSIENT_ERRORS:
            return None

    async def _stored_log(self) -> AsyncIterator[str]:
        since = datetime.fromisoformat(self._job.created_at) - CLOCK_TOLERANCE
        async for entry in self._call.logs.fetch.aio(since=since, source="stdout"):
            yield entry.message


class _LogReader:
    """Reads the log of a call through one connection after the other, and reports a loss of the connection once."""

    def __init__(self, call: ModalCall, stream: LogStream, channel: EventChannel) -> None:
        self._call = call
        self._stream = stream
        self._channel = channel
        self._is_disconnected = False

    async def read(self) -> None:
        """Read the log from its beginning until the connection ends.

        Raises:
            Exception: The connection failed before it brought an entry, so that the next try should wait longer.
        """
        self._stream.restart()
        has_entries = False
        try:
            async for entry in self._call.logs.stream.aio():
                if self._stream.is_finished:
                    return
                has_entries = True
                if self._is_disconnected:
                    self._is_disconnected = False
                    self._channel.message("the connection to Modal is established again")
                self._stream.add(entry.source, entry.message)
                await self._channel.wait_for_space()
        except (modal.exception.Error, OSError) as error:
            if self._stream.is_finished or is_account_refusal(error):  # the result, which follows, has the reason
                return
            if not self._is_disconnected:
                self._is_disconnected = True
                self._channel.message(
                    f"the connection to Modal was lost ({error_text(error)}); the run continues, reconnecting"
                )
            if not has_entries:
                raise


def output_location(job: Job, folder: VolumeRunFolder) -> str:
    """Return a description of where output.log is."""
    if not folder.volume:
        return "Modal's own log (the run has no writable volume for output.log)"
    return f"{job.run_folder}/output.log on the volume {folder.volume}"
