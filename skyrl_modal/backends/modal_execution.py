"""A run on Modal: started, followed and waited for on an event loop of ours."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import hashlib
import json
import queue
import threading
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import modal
import modal.exception

from skyrl_modal.backends import Event
from skyrl_modal.container.modal_function import PREFIX
from skyrl_modal.errors import BackendUnavailable, SkyRLModalError, SpecError
from skyrl_modal.job import Job
from skyrl_modal.mount import Snapshot

T = TypeVar("T")

#: Seconds between two questions where Modal has nothing to wait for.
INTERVAL = 0.5
#: Seconds that the rest of the output may take to arrive after the result.
REST = 15.0
#: Seconds, beyond the command's own grace, that a stopped container gets to commit and leave its record.
RECORD = 30.0

_TRANSIENT = (
    modal.exception.ServiceError,
    modal.exception.InternalError,
    modal.exception.ConnectionError,
    modal.exception.ResourceExhaustedError,
    modal.exception.LogsFetchError,
    OSError,
)


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """The loop that all of this process's runs on Modal share; a notebook's own is not ours to use."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="skyrl-modal", daemon=True).start()
    return loop


class ModalExecution:
    """A run on Modal: one that this object starts, or one that is attached to by its call's id."""

    def __init__(
        self,
        job: Job,
        *,
        app: modal.App | None = None,
        function: modal.Function[..., Any, Any] | None = None,
        owned: bool = False,
        leases: Sequence[Snapshot] = (),
        call_id: str | None = None,
    ) -> None:
        self._job = job
        self._app = app
        self._function = function
        self._owned = owned
        self._leases = leases
        self._call: modal.FunctionCall[Any] | None = None
        self._url: str | None = None
        self._cancelled = False
        self._killed = False
        self._events: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()
        self._shown = _Shown(self._events)
        self._loop = _event_loop()
        self._started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._life: concurrent.futures.Future[None] | None = None
        self._following: concurrent.futures.Future[None] | None = None
        self._record: concurrent.futures.Future[Mapping[str, Any]] | None = None
        self._stored: bytes | None = None
        if call_id is not None:
            self._call = modal.FunctionCall.from_id(call_id)
            self._call_id = call_id
            self._started.set_result(None)
        else:
            self._call_id = ""
            self._life = self._submit(self._live())

    def _submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    # -- the protocol ------------------------------------------------------------------------------------------------

    @property
    def handle(self) -> Mapping[str, Any]:
        """The call's id, once the run is handed over."""
        return {"call_id": self._call_id} if self._call_id else {}

    @property
    def url(self) -> str | None:
        """The app's page."""
        return self._url

    @property
    def log_path(self) -> str:
        """Where output.log is on its volume."""
        volume = self._record_volume()
        if volume is None:
            return "Modal's own log (no writable volume keeps output.log)"
        return f"{self._job.run_dir}/output.log on the volume {volume[0]}"

    def wait_started(self) -> None:
        """Wait until the run is handed over to Modal.

        Raises:
            SkyRLModalError: Modal would not have it.
        """
        self._started.result()

    def events(self) -> Iterator[Event]:
        """What happens, live."""
        if not self._owned and self._following is None:
            self._following = self._submit(self._follow_and_tell())
        while (event := self._events.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event

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

    def state(self) -> str:
        """The run's state now."""
        try:
            record = self.wait(0)
        except TimeoutError:
            content = self._submit(self._read_file("state.json")).result()
            return "pending" if content is None else str(json.loads(content)["state"])
        return str(record["state"])

    def wait(self, timeout: float | None = None) -> Mapping[str, Any]:
        """Wait for the result's record."""
        self.wait_started()
        if self._record is None:
            self._record = self._submit(self._await_record())
        try:
            # A question with no time to wait still needs the time that an answer takes.
            return self._record.result(None if timeout is None else max(timeout, 2.0))
        except concurrent.futures.TimeoutError:
            raise TimeoutError(f"run {self._job.id} has not ended within {timeout:g} s") from None

    def cancel(self, *, now: bool = False) -> None:
        """Ask the run to end; before it is handed over, what is being built or uploaded is given up."""
        self._cancelled = True
        self._killed = self._killed or now
        if self._call is not None:
            self._submit(self._cancel_call(now)).result()
        elif self._life is not None:
            self._life.cancel()

    # -- its life ----------------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        """Build, upload, start; then, where it is ours, follow it to its end inside the app that ends with us."""
        assert self._app is not None
        assert self._function is not None
        try:
            async with self._app.run(detach=not self._owned):
                self._url = await self._app.get_dashboard_url.aio()
                self._call = await self._function.spawn.aio(self._job.to_json())
                self._call_id = self._call.object_id
                self._started.set_result(None)
                for lease in self._leases:
                    lease.release()
                if self._owned:
                    self._events.put(("handle", self.handle))
                    self._events.put(("line", f"handed over to Modal as {self._call_id}: {self._url}"))
                    await self._follow()
        except asyncio.CancelledError:
            self._give_up(KeyboardInterrupt())
        except BaseException as error:
            self._give_up(self._translated(error))
        else:
            if self._owned:
                self._events.put(None)

    def _give_up(self, error: BaseException) -> None:
        if not self._started.done():
            self._started.set_exception(error)
        if self._owned:
            self._events.put(error)

    async def _follow_and_tell(self) -> None:
        try:
            await self._follow()
        except BaseException as error:
            self._events.put(self._translated(error))
        else:
            self._events.put(None)

    async def _follow(self) -> None:
        """Tell the output as it comes, all of it, and the result last."""
        reading = asyncio.ensure_future(self._read_logs())
        try:
            record = await self._await_record()
            live = record.get("live")
            if live is not None:
                counted = asyncio.ensure_future(self._shown.reached(live["characters"]))
                await asyncio.wait([counted], timeout=REST)
                counted.cancel()
            if live is None or not self._shown.is_whole(live):
                await self._tell_rest(live)
        finally:
            reading.cancel()
            # The client's log stream may complain of being closed while it reads; it is over either way.
            await asyncio.gather(reading, return_exceptions=True)
        self._shown.end()
        self._events.put(("result", record))

    async def _read_logs(self) -> None:
        """Follow the call's log; where the connection drops, again from its beginning without what was told."""
        assert self._call is not None
        while True:
            self._shown.begin_again()
            try:
                async for entry in self._call.logs.stream.aio():
                    self._shown.take(entry.source, entry.message)
            except _TRANSIENT:
                pass
            await asyncio.sleep(INTERVAL)

    async def _tell_rest(self, live: Mapping[str, Any] | None) -> None:
        """Tell what the stream did not: from output.log, else from Modal's stored log.

        Without ``live``, as for a container that died, nothing says how much there was: all that is left is told.
        """
        for source in (self._read_text, self._fetch_text):
            text = await source()
            if text is None or (live is not None and _facts(text) != (live["characters"], live["sha256"])):
                continue
            if self._shown.add_rest(text):
                return
        self._shown.end()
        warning = f"warning: the live view above is damaged or not whole; the whole output is {self.log_path}"
        self._events.put(("line", warning))

    async def _fetch_text(self) -> str | None:
        assert self._call is not None
        since = datetime.fromisoformat(self._job.created_at) - timedelta(minutes=5)
        try:
            parts = [entry.message async for entry in self._call.logs.fetch.aio(since=since, source="stdout")]
        except _TRANSIENT:
            return None
        return "".join(parts)

    async def _read_text(self) -> str | None:
        content = await self._read_file("output.log")
        return None if content is None else content.decode("utf-8", "replace")

    async def _read_output(self) -> bytes:
        content = await self._read_file("output.log") if await self._is_over() else None
        if content is None:
            content = (await self._fetch_text() or "").encode()
        return content

    async def _is_over(self) -> bool:
        return await self._read_file("result.json") is not None

    async def _cancel_call(self, now: bool) -> None:
        assert self._call is not None
        await self._call.cancel.aio(terminate_containers=now)

    async def _await_record(self) -> Mapping[str, Any]:
        """The result's record: the call's value, else what the supervisor left on the volume."""
        assert self._call is not None
        while True:
            try:
                value: Mapping[str, Any] = await self._call.get.aio()
                return value
            except _TRANSIENT:
                await asyncio.sleep(INTERVAL)
            except modal.exception.AuthError as error:
                raise self._translated(error) from error
            except modal.exception.FunctionTimeoutError as error:
                return await self._left_record("timed_out", 124, error)
            except modal.exception.Error as error:
                if self._cancelled or isinstance(error, modal.exception.RemoteError):
                    return await self._left_record(
                        "cancelled" if self._cancelled else "lost", 137 if self._killed else 130, error
                    )
                return await self._left_record("lost", 125, error)

    async def _left_record(self, state: str, returncode: int, error: BaseException) -> Mapping[str, Any]:
        """The record on the volume; the call may be over for Modal while its container still saves and commits."""
        if self._record_volume() is not None:
            # Also where nobody here cancelled it: the end of its app, or of its caller, stops a run in the same way.
            grace = 0.0 if self._killed else self._job.grace
            deadline = self._loop.time() + grace + (RECORD if self._cancelled and not self._killed else RECORD / 3)
            while self._loop.time() < deadline:
                content = await self._read_file("result.json")
                if content is not None:
                    record: Mapping[str, Any] = json.loads(content)
                    return record
                await asyncio.sleep(INTERVAL)
        return {
            "run_id": self._job.id,
            "state": state,
            "returncode": 125 if state == "lost" else returncode,
            "attempts": 0,
            "started_at": self._job.created_at,
            "duration": (datetime.now(UTC) - datetime.fromisoformat(self._job.created_at)).total_seconds(),
            "detail": f"Modal says: {error or type(error).__name__}",
        }

    # -- the volume --------------------------------------------------------------------------------------------------

    def _record_volume(self) -> tuple[str, str] | None:
        """The volume that has the run's folder, and the folder's path on it."""
        for volume in self._job.volumes:
            if not volume.read_only and self._job.run_dir.startswith(f"{volume.mount_path}/"):
                return volume.name, self._job.run_dir.removeprefix(volume.mount_path)
        return None

    async def _read_file(self, name: str) -> bytes | None:
        place = self._record_volume()
        if place is None:
            return None
        parts: list[bytes] = []
        while True:
            try:
                async for part in modal.Volume.from_name(place[0]).read_file.aio(f"{place[1]}/{name}"):
                    parts.append(part)
                return b"".join(parts)
            except (FileNotFoundError, modal.exception.NotFoundError):
                return None
            except _TRANSIENT:
                parts.clear()
                await asyncio.sleep(INTERVAL)

    def _translated(self, error: BaseException) -> BaseException:
        """Modal's error as one of ours, with Modal's words in it."""
        words = str(error) or type(error).__name__
        if isinstance(error, SkyRLModalError | asyncio.CancelledError):
            return error
        if isinstance(error, modal.exception.AuthError):
            return BackendUnavailable("modal", f"the token was refused ({words}): run `modal setup`")
        if isinstance(error, modal.exception.ConnectionError | OSError):
            return BackendUnavailable("modal", f"it cannot be reached: {words}")
        if isinstance(error, modal.exception.ImageBuildError):
            return SpecError("image", self._job.image["base"], f"it could not be built: {words}")
        if isinstance(error, modal.exception.NotFoundError):
            field, value = ("secrets", list(self._job.named_secrets)) if "ecret" in words else ("volumes", words)
            return SpecError(field, value, f"Modal has none of that name: {words}")
        if isinstance(error, modal.exception.InvalidError):
            field, value = ("gpu", list(self._job.gpu)) if "gpu" in words.lower() else ("launcher", self._job.app_name)
            return SpecError(field, value, f"Modal refuses it: {words}")
        if isinstance(error, modal.exception.Error):
            return BackendUnavailable("modal", words)
        return error


class _Shown:
    """What was told of the log: each piece once, whatever the connection repeats."""

    def __init__(self, events: queue.SimpleQueue[Any]) -> None:
        self._events = events
        self._told = {"stdout": 0, "stderr": 0, "system": 0}
        self._skip = dict(self._told)
        self._hash = hashlib.sha256()
        self._line = ""
        self._grown = asyncio.Event()

    def begin_again(self) -> None:
        """The log comes from its beginning now."""
        self._skip = dict(self._told)

    def take(self, source: str, message: str) -> None:
        """Take an entry of the log."""
        skipped = min(self._skip[source], len(message))
        self._skip[source] -= skipped
        fresh = message[skipped:]
        if not fresh:
            return
        self._told[source] += len(fresh)
        if source == "stdout":
            data = fresh.encode("utf-8", "replace")
            self._hash.update(data)
            self._events.put(("output", data))
            self._grown.set()
            return
        *whole, self._line = (self._line + fresh).split("\n")
        for line in whole:
            self._events.put(("line", line.removeprefix(PREFIX)))

    def end(self) -> None:
        """Tell a last line that has no end."""
        if self._line:
            self._events.put(("line", self._line.removeprefix(PREFIX)))
            self._line = ""

    async def reached(self, characters: int) -> None:
        """Wait until so many characters of the output were told."""
        while self._told["stdout"] < characters:
            self._grown.clear()
            await self._grown.wait()

    def is_whole(self, live: Mapping[str, Any]) -> bool:
        """Whether what was told is what the container showed."""
        return (self._told["stdout"], self._hash.hexdigest()) == (live["characters"], live["sha256"])

    def add_rest(self, text: str) -> bool:
        """Tell what is missing at the end; False where what was told is not how the text begins."""
        told = self._told["stdout"]
        if hashlib.sha256(text[:told].encode("utf-8", "replace")).digest() != self._hash.digest():
            return False
        self.begin_again()
        self._skip["stdout"] = 0
        self.take("stdout", text[told:])
        return True


def _facts(text: str) -> tuple[int, str]:
    return len(text), hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
