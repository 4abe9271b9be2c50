"""Server-sent events: what is added to a run, for all clients that follow it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from skyrl_modal.protocol.codec import encode
from skyrl_modal.web.plain import plain

if TYPE_CHECKING:
    from skyrl_modal.web.access import Receive, Scope, Send
    from skyrl_modal.web.observed_run import News
    from skyrl_modal.web.runs import Runs

#: Seconds between two looks at a run: on this machine, and on another backend.
_LOCAL_INTERVAL, _REMOTE_INTERVAL = 0.2, 3.0
#: Seconds between two looks at the list of runs, and at the state of a run.
_LIST_INTERVAL = 1.0
#: Seconds that the answer to a new client waits for the first look at its runs.
_START_SECONDS = 3.0
#: Seconds without an event after which a comment is sent, so that a closed connection is noticed.
_KEEP_ALIVE = 15.0
#: Events, and their bytes, that wait for a client at most.
_MAX_EVENTS, _MAX_BYTES = 64, 4 << 20


def format_event(name: str, data: Any) -> bytes:
    r"""Return an event as it is sent.

    Example:
        >>> format_event("runs", {})
        b'event: runs\ndata: {}\n\n'
    """
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


class Client:
    """A connection that follows runs, and the list of runs.

    Args:
        run_ids: The runs.
        drop: Closes the connection.
    """

    def __init__(self, run_ids: Iterable[str], drop: Callable[[], None]) -> None:
        self.run_ids = tuple(run_ids)
        self._drop = drop
        self._events: asyncio.Queue[bytes] = asyncio.Queue()
        self._bytes = 0
        self.is_dropped = False

    def put(self, event: bytes) -> None:
        """Add an event. A client for which too many are waiting is dropped: it connects again and reads again."""
        if self.is_dropped:
            return
        if self._events.qsize() >= _MAX_EVENTS or self._bytes + len(event) > _MAX_BYTES:
            self.close()
            return
        self._bytes += len(event)
        self._events.put_nowait(event)

    def close(self) -> None:
        """End the connection, also while the client does not read."""
        self._drop()
        self.is_dropped = True
        self._events.put_nowait(b"")

    async def get(self) -> bytes:
        """Return the waiting events; a comment if there is none for some time."""
        try:
            parts = [await asyncio.wait_for(self._events.get(), _KEEP_ALIVE)]
        except TimeoutError:
            return b": no event\n\n"
        while not self._events.empty():
            parts.append(self._events.get_nowait())
        self._bytes -= sum(map(len, parts))
        return b"".join(parts)


class Hub:
    """Looks at the runs that clients follow, each once for all of its clients.

    Args:
        runs: The runs.
    """

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self._clients: set[Client] = set()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._counting: dict[str, asyncio.Event] = {}

    @property
    def client_count(self) -> int:
        """Number of clients."""
        return len(self._clients)

    def add(self, client: Client) -> None:
        """Begin to send events to a client."""
        self._clients.add(client)
        for run_id in client.run_ids:
            if run_id not in self._tasks:
                self._counting[run_id] = asyncio.Event()
                self._tasks[run_id] = asyncio.create_task(self._follow(run_id))
        if "" not in self._tasks:
            self._tasks[""] = asyncio.create_task(self._follow_list())

    def close(self) -> None:
        """End all connections."""
        for client in self._clients:
            client.close()

    async def wait_counting(self, run_ids: Iterable[str]) -> None:
        """Wait until what is added to runs from now on is sent, at most for some seconds."""
        waits = [asyncio.create_task(self._counting[run_id].wait()) for run_id in run_ids if run_id in self._counting]
        if waits:
            _, pending = await asyncio.wait(waits, timeout=_START_SECONDS)
            for task in pending:
                task.cancel()

    def remove(self, client: Client) -> None:
        """Stop sending events to a client."""
        self._clients.discard(client)
        followed = {run_id for other in self._clients for run_id in other.run_ids}
        followed |= {""} if self._clients else set()
        for run_id in self._tasks.keys() - followed:
            self._tasks.pop(run_id).cancel()
            self._counting.pop(run_id, None)

    def _send(self, run_id: str, name: str, data: Any) -> None:
        clients = [client for client in self._clients if not run_id or run_id in client.run_ids]
        event = format_event(name, data)
        for client in clients:
            client.put(event)

    async def _follow_list(self) -> None:
        version = self._runs.list.version
        while True:
            await asyncio.sleep(_LIST_INTERVAL)
            with contextlib.suppress(Exception):  # the next look may succeed
                await self._runs.refresh_list()
            if self._runs.list.version != version:
                version = self._runs.list.version
                self._send("", "runs", {})

    async def _follow(self, run_id: str) -> None:
        """Send what is added to a run, and its state. Neither waits for the other."""
        await asyncio.gather(self._follow_news(run_id), self._follow_state(run_id))

    async def _follow_news(self, run_id: str) -> None:
        is_first = True
        while True:
            interval = _LIST_INTERVAL
            with contextlib.suppress(Exception):  # its summary has the reason, and the next look may succeed
                observed = await self._runs.observed(run_id)
                news = await self._runs.call(observed, partial(observed.news, restart=is_first))
                is_first = False
                self._counting[run_id].set()
                self._send_news(run_id, news)
                if not self._runs.has_ended(run_id):
                    interval = _LOCAL_INTERVAL if observed.is_local else _REMOTE_INTERVAL
            await asyncio.sleep(interval)

    async def _follow_state(self, run_id: str) -> None:
        before = None
        while True:
            with contextlib.suppress(Exception):  # the next look may succeed
                summary = await self._runs.summary(await self._runs.observed(run_id))
                if summary != before:
                    before = summary
                    self._send(run_id, "run", summary)
            await asyncio.sleep(_LIST_INTERVAL)

    def _send_news(self, run_id: str, news: News) -> None:
        if news.rows or news.skipped_rows:
            rows = plain(news.rows)
            self._send(run_id, "metrics", {"run": run_id, "rows": rows, "skipped": news.skipped_rows})
        if news.lines:
            lines = [encode(line) for line in news.lines]
            self._send(run_id, "log", {"run": run_id, "lines": lines, "skipped": news.skipped_lines})


class EventStream:
    """The answer to ``/api/events``: an ASGI application.

    Args:
        hub: Sends the events.
        run_ids: The runs that are followed.
        drop: Closes the connection of a client by its address.
    """

    def __init__(self, hub: Hub, run_ids: Iterable[str], drop: Callable[[Any], None]) -> None:
        self._hub = hub
        self._run_ids = tuple(run_ids)
        self._drop = drop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the client closes the connection."""
        client = Client(self._run_ids, lambda: self._drop(scope.get("client")))
        self._hub.add(client)
        try:
            headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
            await self._hub.wait_counting(self._run_ids)
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b": connected\n\n", "more_body": True})
            closed = asyncio.create_task(_wait_closed(receive))
            sending = asyncio.create_task(_send_events(client, send))
            _, pending = await asyncio.wait({closed, sending}, return_when=asyncio.FIRST_COMPLETED)
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
            await send({"type": "http.response.body", "body": b""})
        finally:
            self._hub.remove(client)


async def _wait_closed(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_events(client: Client, send: Send) -> None:
    while not client.is_dropped:
        events = await client.get()
        if events:
            await send({"type": "http.response.body", "body": events, "more_body": True})
