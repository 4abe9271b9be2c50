"""Logs: output of containers, stored as entries and served as Modal serves it.

Assumptions about Modal: an entry is a chunk of one stream (stdout or stderr) as it was read, not a line. It has the
id of the call whose input the container was running when it was read, and no call id during the import. Entries of
the server itself have the INFO descriptor and no call id, so that only the app's log has them. A stream with an empty
cursor starts at the app's first entry that is still stored, and ends with `app_done` when the app has stopped. The
server ends an open stream after the timeout that the client requested.
"""

from __future__ import annotations

import asyncio
import codecs
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

import attrs
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from .records import App, Container, Function, Input
from .rpc import Context, Service

STDOUT, STDERR = api_pb2.FILE_DESCRIPTOR_STDOUT, api_pb2.FILE_DESCRIPTOR_STDERR
SYSTEM = api_pb2.FILE_DESCRIPTOR_INFO


@attrs.frozen
class Entry:
    """One log entry."""

    number: int
    time_ns: int
    descriptor: int
    data: str
    container_id: str
    function_id: str
    call_id: str
    input_id: str
    task_state: int = 0

    def batch(self) -> api_pb2.TaskLogsBatch:
        """Return the entry as a protobuf message."""
        item = api_pb2.TaskLogs(
            data=self.data,
            task_state=self.task_state,  # type: ignore[arg-type]  # protobuf keeps enums as numbers
            timestamp=self.time_ns / 1e9,
            timestamp_ns=self.time_ns,
            file_descriptor=self.descriptor,  # type: ignore[arg-type]  # protobuf keeps enums as numbers
            function_call_id=self.call_id,
            input_id=self.input_id,
            container_id=self.container_id,
        )
        return api_pb2.TaskLogsBatch(
            task_id=self.container_id,
            function_id=self.function_id,
            input_id=self.input_id,
            items=[item],
            entry_id=f"{self.number}-0",
        )


@attrs.define(eq=False)
class AppLog:
    """The log entries of one app."""

    entries: list[Entry] = attrs.field(factory=list)
    changed: asyncio.Event = attrs.field(factory=asyncio.Event)

    def notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class Logs(Service):
    """The stored logs, and RPCs about them.

    Attributes:
        chunk: Maximum size of an entry in bytes of UTF-8; None keeps entries as they were read.
        whole_characters: If False, a character that is cut becomes replacement characters in both entries.
    """

    def __init__(self, plane: Any) -> None:
        super().__init__(plane)
        self.logs: dict[str, AppLog] = {}
        self.chunk: int | None = None
        self.whole_characters = True
        self._decoders: dict[tuple[str, int], codecs.IncrementalDecoder] = {}

    def of(self, app: App) -> AppLog:
        return self.logs.setdefault(app.id, AppLog())

    # -- writing -----------------------------------------------------------------------------------------------------

    def write(self, container: Container, descriptor: int, data: bytes, *, end: bool = False) -> None:
        """Store output of a container; at its end also an incomplete character."""
        key = (container.id, descriptor)
        if key not in self._decoders:
            self._decoders[key] = codecs.getincrementaldecoder("utf-8")("replace")
        decoder = self._decoders[key]
        size = self.chunk or max(len(data), 1)
        pieces = [data[start : start + size] for start in range(0, len(data), size)] or [b""]
        running = container.running[-1] if container.running else None
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1
            whole = self.whole_characters
            text = decoder.decode(piece, end and last) if whole else piece.decode("utf-8", "replace")
            if text:
                self.add(container, descriptor, text, running)
        if end:
            del self._decoders[key]

    def system(self, container: Container, text: str) -> None:
        """Add a line of the server itself about a container. It belongs to no call."""
        self.add(container, SYSTEM, text + "\n")

    def app_line(self, app: App, text: str) -> None:
        """Add a line of the server itself about an app."""
        self._append(app, SYSTEM, text + "\n")

    def function_line(self, function: Function, text: str) -> None:
        """Add a line of the server itself about a function that has no container yet."""
        self._append(function.app, SYSTEM, text + "\n", function_id=function.id)

    def add(
        self, container: Container, descriptor: int, text: str, running: Input | None = None, task_state: int = 0
    ) -> None:
        self._append(
            container.function.app,
            descriptor,
            text,
            container_id=container.id,
            function_id=container.function.id,
            call_id=running.call.id if running else "",
            input_id=running.id if running else "",
            task_state=task_state,
        )

    def _append(
        self,
        app: App,
        descriptor: int,
        text: str,
        *,
        container_id: str = "",
        function_id: str = "",
        call_id: str = "",
        input_id: str = "",
        task_state: int = 0,
    ) -> None:
        log = self.of(app)
        log.entries.append(
            Entry(
                number=len(log.entries) + 1,
                time_ns=time.time_ns(),
                descriptor=descriptor,
                data=text,
                container_id=container_id,
                function_id=function_id,
                call_id=call_id,
                input_id=input_id,
                task_state=task_state,
            )
        )
        log.notify()

    # -- reading -----------------------------------------------------------------------------------------------------

    @staticmethod
    def _wanted(entry: Entry, request: Any, descriptor: int) -> bool:
        return (
            (not request.function_call_id or entry.call_id == request.function_call_id)
            and (not request.function_id or entry.function_id == request.function_id)
            and (not request.task_id or entry.container_id == request.task_id)
            and (not descriptor or entry.descriptor == descriptor)
            and (not request.search_text or request.search_text in entry.data)
        )

    def _app(self, request: Any) -> App:
        app = self.plane.apps.apps.get(request.app_id) or self.plane.images.builder(request.app_id)
        if app is None and request.task_id:
            container = self.plane.scheduler.containers.get(request.task_id)
            app = container.function.app if container else None
        if app is None:
            raise GRPCError(Status.NOT_FOUND, f"App {request.app_id!r} not found.")
        return app

    def _first_stored(self, log: AppLog) -> int:
        """Return the number of entries that are no longer stored."""
        retention = self.plane.mode.log_retention
        if retention is None:
            return 0
        oldest = time.time_ns() - retention * 1e9
        return sum(entry.time_ns < oldest for entry in log.entries)

    async def AppGetLogs(
        self, request: api_pb2.AppGetLogsRequest, context: Context
    ) -> AsyncIterator[api_pb2.TaskLogsBatch]:
        app = self._app(request)
        log, faults = self.of(app), self.plane.faults
        deadline = time.monotonic() + request.timeout
        cursor = int(request.last_entry_id.partition("-")[0] or 0) or self._first_stored(log)
        while True:
            changed = log.changed
            over = app.state == api_pb2.APP_STATE_STOPPED
            wait = deadline - time.monotonic()
            silent = faults.logs_silent_until - time.monotonic()
            if silent > 0:
                wait = min(wait, silent)
            else:
                while cursor < len(log.entries):
                    entry = log.entries[cursor]
                    early = entry.time_ns / 1e9 + faults.log_delay - time.time()
                    if early > 0:
                        wait = min(wait, early)
                        break
                    cursor += 1
                    if self._wanted(entry, request, request.file_descriptor):
                        yield entry.batch()
                    if faults.logs_silent_until > time.monotonic():
                        break
                else:
                    if over:
                        yield api_pb2.TaskLogsBatch(app_done=True)
                        return
            if time.monotonic() >= deadline:
                return
            if cursor < len(log.entries) and silent <= 0 and wait >= deadline - time.monotonic():
                continue
            try:
                await asyncio.wait_for(changed.wait(), max(0.001, wait))
            except TimeoutError:
                continue

    def _range(self, request: Any) -> list[Entry]:
        since, until = request.since.ToNanoseconds(), request.until.ToNanoseconds()
        return [
            entry
            for entry in self.of(self._app(request)).entries
            if since <= entry.time_ns < until and entry.data and self._wanted(entry, request, request.source)
        ]

    async def AppFetchLogs(
        self, request: api_pb2.AppFetchLogsRequest, context: Context
    ) -> api_pb2.AppFetchLogsResponse:
        entries = self._range(request)
        kept: Iterable[Entry] = entries[-request.limit :] if request.limit else entries
        return api_pb2.AppFetchLogsResponse(batches=[entry.batch() for entry in kept])

    async def AppCountLogs(
        self, request: api_pb2.AppCountLogsRequest, context: Context
    ) -> api_pb2.AppCountLogsResponse:
        width = max(1, request.bucket_secs)
        first, last = request.since.seconds // width, request.until.seconds // width
        buckets = [
            api_pb2.AppCountLogsResponse.LogBucket(bucket_start_at={"seconds": number * width})
            for number in range(first, last + 1)
        ]
        for entry in self._range(request):
            bucket = buckets[entry.time_ns // 1_000_000_000 // width - first]
            if entry.descriptor == STDOUT:
                bucket.stdout_logs += 1
            elif entry.descriptor == STDERR:
                bucket.stderr_logs += 1
            else:
                bucket.system_logs += 1
        return api_pb2.AppCountLogsResponse(app_id=request.app_id, buckets=buckets)
