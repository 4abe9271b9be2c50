"""A run on Modal: started, followed and waited for on an event loop of ours."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import functools
import json
import logging
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import modal
import modal.exception

from skyrl_modal.backends import Event
from skyrl_modal.backends.modal.app import RunApp, carried
from skyrl_modal.backends.modal.errors import TRANSIENT, translated, words_of
from skyrl_modal.backends.modal.log_stream import Channel, LogView, facts_of
from skyrl_modal.backends.modal.run_folder import INTERVAL, RecordFolder
from skyrl_modal.event_queue import wait_for
from skyrl_modal.protocol.job import Job

T = TypeVar("T")

#: Seconds of silence after which the rest of the output, which should follow the result, is fetched instead.
REST = 10.0
#: Seconds, beyond the command's own grace, that a stopped container gets to commit and leave its record.
RECORD = 30.0
#: Seconds after which a run that has nothing on its volume never began.
BEGUN = 10.0
#: Seconds that Modal gets to end a run at once; then it is left alone, and ends with its app.
AT_ONCE = 4.0
#: Seconds between two lines while something takes long.
STILL = 15.0


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """The loop that all of this process's runs on Modal share; a notebook's own is not ours to use."""
    loop = asyncio.new_event_loop()
    # After modal's own, and so called before it.
    atexit.register(logging.getLogger("asyncio").addFilter, _is_news)
    threading.Thread(target=loop.run_forever, name="skyrl-modal", daemon=True).start()
    return loop


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a message of asyncio's at the end of the process is more than that a log stream was still open.

    modal's client cannot close a stream that waits (1.6.4), and asyncio would tell it to the user at length.
    """
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, modal.exception.ClientClosed) or "aclose(): asynchronous generator" in str(error))


def _says_cancelled(error: modal.exception.Error) -> bool:
    """Whether Modal says of a call that somebody cancelled it, or that its app is over.

    The container's client and the server then give no reason, which they do for a call that failed.
    """
    return type(error) is modal.exception.RemoteError and not str(error)


def _result_of(future: concurrent.futures.Future[T], timeout: float | None = None) -> T:
    """What a future gives.

    Raises:
        TimeoutError: It has not given anything within so many seconds.
    """
    wait_for(lambda seconds: future in concurrent.futures.wait([future], seconds).done, timeout)
    return future.result(timeout=0)


class ModalExecution:
    """A run on Modal: one that this object starts, or one that is attached to by its call's id."""

    def __init__(
        self, job: Job, *, run_app: RunApp | None = None, owned: bool = False, call_id: str | None = None
    ) -> None:
        self._job = job
        self._owned = owned
        self._loop = _event_loop()
        self._call: modal.FunctionCall[Any] | None = None
        self._call_id = ""
        self._url: str | None = None
        self._cancelled = False
        self._killed = asyncio.Event()
        self._channel = Channel(self._loop)
        self._readers: set[asyncio.Future[None]] = set()
        self._started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._life: concurrent.futures.Future[None] | None = None
        self._record: concurrent.futures.Future[Mapping[str, Any]] | None = None
        self._folder = RecordFolder(job)
        self._stored: bytes | None = None
        if call_id is not None:
            self._set_call(modal.FunctionCall.from_id(call_id), call_id)
        elif run_app is not None:
            self._life = self._submit(self._live(run_app))

    def _submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _set_call(self, call: modal.FunctionCall[Any], call_id: str) -> None:
        self._call, self._call_id = call, call_id
        self._started.set_result(None)

    # -- the protocol ------------------------------------------------------------------------------------------------

    @property
    def handle(self) -> Mapping[str, Any]:
        """The call's id, once the run is handed over."""
        return {"call_id": self._call_id} if self._call_id else {}

    @property
    def url(self) -> str | None:
        """Ray's dashboard, where the run has one and goes on; else the app's page, where it is known here."""
        if self._call is not None and self._job.ray is not None and self._job.ray.get("dashboard"):
            content = self._submit(self._folder.read("state.json")).result()
            url = json.loads(content).get("url") if content is not None else None
            if url and not self._submit(self._is_over()).result():
                return str(url)
        return self._url

    @property
    def log_path(self) -> str:
        """Where output.log is on its volume."""
        if not self._folder.volume:
            return "Modal's own log (no writable volume keeps output.log)"
        return f"{self._job.run_dir}/output.log on the volume {self._folder.volume}"

    def wait_started(self) -> None:
        """Wait until the run is handed over to Modal.

        Raises:
            SkyRLModalError: Modal would not have it.
        """
        _result_of(self._started)

    def events(self) -> Iterator[Event]:
        """What happens, live: of a run of ours once, of another one from its beginning each time."""
        if self._owned:
            yield from self._channel
            return
        channel = Channel(self._loop)
        following = self._submit(self._follow_and_tell(channel))
        try:
            yield from channel
        finally:
            following.cancel()

    def log_size(self) -> int:
        """Bytes of the output that can be had now."""
        self._stored = self._submit(self._read_output()).result()
        return len(self._stored)

    def read_log(self, offset: int) -> bytes:
        """The output from an offset on, as it was when its size was asked for."""
        if self._stored is None:
            self.log_size()
        stored = self._stored or b""
        return stored[offset:]

    def read_files(self, folder: str) -> Iterator[tuple[str, bytes]]:
        """The files below a folder of the run's own, as the volume has them."""
        for name in self._submit(self._folder.names(folder)).result():
            content = self._submit(self._folder.read(f"{folder}/{name}")).result()
            if content is not None:
                yield name, content

    def state(self) -> str:
        """The run's state now."""
        if self._call is None:
            return "pending"
        if self._record is None or not self._record.done():
            is_over = self._submit(self._is_over()).result()
            if not is_over:
                content = self._submit(self._folder.read("state.json")).result()
                return "pending" if content is None else str(json.loads(content)["state"])
        return str(self.wait()["state"])

    def wait(self, timeout: float | None = None) -> Mapping[str, Any]:
        """Wait for the result's record."""
        self.wait_started()
        if self._record is None or (self._record.done() and self._record.exception() is not None):
            self._record = self._submit(self._await_record())
        try:
            # A question with no time to wait still needs the time that an answer takes.
            return _result_of(self._record, None if timeout is None else max(timeout, 2.0))
        except concurrent.futures.TimeoutError:
            raise TimeoutError(f"run {self._job.id} has not ended within {timeout:g} s") from None

    def cancel(self, *, now: bool = False) -> None:
        """Ask the run to end; before it is handed over, what is being built or uploaded is given up."""
        self._cancelled = True
        if self._call is None:
            if self._life is not None:
                self._life.cancel()
            return
        if now:
            self._loop.call_soon_threadsafe(self._killed.set)
        cancelling = self._submit(self._cancel_call(now))
        if not self._owned:
            cancelling.result()

    # -- its life ----------------------------------------------------------------------------------------------------

    async def _live(self, run_app: RunApp) -> None:
        """Build, upload, start; then, where it is ours, follow it to its end inside the app that ends with us."""
        is_told = False
        try:
            async with self._aloud("looking whether Modal answers"):
                await run_app.look_ahead()
            app, function = await asyncio.to_thread(run_app.define)
            self._job = run_app.job
            for warning in run_app.warnings:
                self._channel.line(f"warning: {warning}")
            files = " and ".join(carried(mount) for mount in self._job.mounts) or "no files"
            what = f"building what the image lacks, and uploading what Modal lacks of {files}"
            self._channel.line(what)
            async with contextlib.AsyncExitStack() as stack:
                async with self._aloud(what) as seconds:
                    await stack.enter_async_context(app.run(detach=not self._owned))
                    self._url = await app.get_dashboard_url.aio()
                    call = await function.spawn.aio(*run_app.arguments(self._job))
                run_app.release()
                self._set_call(call, call.object_id)
                if self._owned:
                    self._channel.put(("handle", self.handle))
                    self._channel.line(f"handed over after {seconds():.1f} s as {self._call_id}: {self._url}")
                    await self._follow(self._channel)
                    is_told = True
        except asyncio.CancelledError:
            self._give_up(KeyboardInterrupt())
        except BaseException as error:
            if is_told:
                # Modal could not be told that the app is over; it ends all the same, without its caller.
                self._channel.line(f"warning: the app may go on for some seconds: {words_of(error)}")
                self._channel.end()
            else:
                self._give_up(await translated(error, self._job))
        else:
            self._channel.end()
        finally:
            run_app.release()

    def _give_up(self, error: BaseException) -> None:
        if not self._started.done():
            self._started.set_exception(error)
        self._channel.end(error)

    @contextlib.asynccontextmanager
    async def _aloud(self, what: str) -> AsyncIterator[Any]:
        """Say now and then that something is still going on; gives a clock."""
        begin = self._loop.time()

        def seconds() -> float:
            return self._loop.time() - begin

        async def say() -> None:
            while True:
                await asyncio.sleep(STILL)
                self._channel.line(f"still {what} ({seconds():.0f} s)")

        saying = asyncio.ensure_future(say())
        try:
            yield seconds
        finally:
            saying.cancel()

    async def _follow_and_tell(self, channel: Channel) -> None:
        try:
            await self._follow(channel)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            channel.end(await translated(error, self._job))
        else:
            channel.end()

    async def _follow(self, channel: Channel) -> None:
        """Tell the output as it comes, all of it, and the result last."""
        view = LogView(channel)
        self._readers.add(reading := asyncio.ensure_future(self._read_logs(view, channel)))
        reading.add_done_callback(self._readers.discard)
        try:
            record = await self._record_or_kill()
            live = record.get("live")
            if live is not None:
                await view.reached(live["characters"], REST)
            if live is None or not view.is_whole(live):
                rest = asyncio.ensure_future(self._tell_rest(view, channel, live))
                if (await asyncio.wait([rest], timeout=AT_ONCE if self._killed.is_set() else None))[1]:
                    rest.cancel()
                    channel.line("warning: what the command said last could not be fetched")
        finally:
            view.is_over = True
            channel.close()
        view.end()
        channel.put(("result", record))

    async def _record_or_kill(self) -> Mapping[str, Any]:
        """The result's record; one of ours where it was killed and Modal does not say so soon."""
        ending = asyncio.ensure_future(self._await_record())
        killing = asyncio.ensure_future(self._killed.wait())
        try:
            await asyncio.wait([ending, killing], return_when=asyncio.FIRST_COMPLETED)
            if not ending.done():
                await asyncio.wait([ending], timeout=AT_ONCE)
            if ending.done():
                return ending.result()
            return self._made_up("cancelled", 137, "ended at once; Modal has not confirmed it")
        finally:
            ending.cancel()
            killing.cancel()

    async def _read_logs(self, view: LogView, channel: Channel) -> None:
        """Follow the call's log; where the connection drops, again from its beginning without what was told.

        It is never cancelled: the client's stream cannot be closed while it waits, and ends soon after the call.
        """
        assert self._call is not None
        is_lost = False
        while not view.is_over:
            view.begin_again()
            try:
                async for entry in self._call.logs.stream.aio():
                    if view.is_over:
                        return
                    if is_lost:
                        is_lost = False
                        channel.line("connected to Modal again")
                    view.take(entry.source, entry.message)
                    await channel.room()
            except (modal.exception.Error, OSError) as error:
                if view.is_over:
                    return
                if not is_lost:
                    is_lost = True
                    channel.line(f"the connection to Modal is lost; the run goes on, trying again ({words_of(error)})")
            await asyncio.sleep(INTERVAL)

    async def _tell_rest(self, view: LogView, channel: Channel, live: Mapping[str, Any] | None) -> None:
        """Tell what the stream did not: from output.log, else from Modal's stored log.

        Without ``live``, as for a container that died, nothing says how much there was: all that is left is told.
        """
        for source in (self._read_text, self._fetch_text):
            text = await source()
            if text is None or (live is not None and facts_of(text) != (live["characters"], live["sha256"])):
                continue
            if view.add_rest(text):
                return
        view.end()
        channel.line(f"warning: the live view above is damaged or not whole; the whole output is {self.log_path}")

    async def _fetch_text(self) -> str | None:
        assert self._call is not None
        since = datetime.fromisoformat(self._job.created_at) - timedelta(minutes=5)
        try:
            parts = [entry.message async for entry in self._call.logs.fetch.aio(since=since, source="stdout")]
        except TRANSIENT:
            return None
        return "".join(parts)

    async def _read_text(self) -> str | None:
        content = await self._folder.read("output.log")
        return None if content is None else content.decode("utf-8", "replace")

    async def _read_output(self) -> bytes:
        content = await self._folder.read("output.log") if await self._is_over() else None
        if content is None:
            content = (await self._fetch_text() or "").encode()
        return content

    # -- its end -----------------------------------------------------------------------------------------------------

    async def _is_over(self) -> bool:
        """Whether Modal has ended the call."""
        assert self._call is not None
        try:
            await self._call.get.aio(timeout=0)
        except TimeoutError:
            return False
        except TRANSIENT:
            return await self._folder.read("result.json") is not None
        except modal.exception.AuthError as error:
            raise await translated(error, self._job) from error
        except modal.exception.Error:
            return True
        return True

    async def _cancel_call(self, now: bool) -> None:
        assert self._call is not None
        while True:
            try:
                await self._call.cancel.aio(terminate_containers=now)
                return
            except TRANSIENT as error:
                if not self._owned:
                    raise await translated(error, self._job) from error
                await asyncio.sleep(INTERVAL)

    async def _await_record(self) -> Mapping[str, Any]:
        """The result's record: the call's value, else what the supervisor left on the volume."""
        assert self._call is not None
        while True:
            try:
                value: Mapping[str, Any] = await self._call.get.aio()
                return value
            except modal.exception.FunctionTimeoutError as error:
                return await self._left_record("timed_out", 124, error)
            except TRANSIENT:
                await asyncio.sleep(INTERVAL)
            except modal.exception.AuthError as error:
                raise await translated(error, self._job) from error
            except modal.exception.Error as error:
                was_cancelled = self._cancelled or _says_cancelled(error)
                return await self._left_record("cancelled" if was_cancelled else "lost", 125, error)

    async def _left_record(self, state: str, returncode: int, error: BaseException) -> Mapping[str, Any]:
        """The record on the volume; the call may be over for Modal while its container still saves and commits."""
        begin, begun = self._loop.time(), False
        # Also where nobody here cancelled it: the end of its app, or of its caller, stops a run in the same way.
        patience = self._job.grace + (RECORD if self._cancelled else RECORD / 3)
        while self._folder.volume:
            content = await self._folder.read("result.json")
            if content is not None:
                record: Mapping[str, Any] = json.loads(content)
                return record
            begun = begun or await self._folder.read("state.json") is not None
            # One that never began leaves no record, however long it is waited for.
            if self._killed.is_set() or self._loop.time() >= begin + (patience if begun else min(patience, BEGUN)):
                break
            await asyncio.sleep(INTERVAL)
        if state == "cancelled":
            returncode = 137 if begun or self._killed.is_set() else 130
        return self._made_up(state, returncode, f"Modal says: {words_of(error)}")

    def _made_up(self, state: str, returncode: int, detail: str) -> Mapping[str, Any]:
        """A record for a run that left none."""
        return {
            "run_id": self._job.id,
            "state": state,
            "returncode": returncode,
            "attempts": 0,
            "started_at": self._job.created_at,
            "duration": (datetime.now(UTC) - datetime.fromisoformat(self._job.created_at)).total_seconds(),
            "detail": detail,
        }
