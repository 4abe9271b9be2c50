"""Events of a run on their way from the event loop to the thread that reads them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from skyrl_modal.event_queue import EventQueue
from skyrl_modal.protocol.events import MessageEvent, MessageLevel, RunEvent, StateEvent
from skyrl_modal.protocol.state import FailureCause, RunState

#: Events that may wait to be read. A piece of Modal's log has up to some 10 kB, so this is a few MB at most.
MAX_QUEUED_EVENTS = 256


class EventChannel:
    """A queue from an event loop to a thread. The producer can wait until the thread has caught up.

    Attributes:
        is_closed: Whether the reader has stopped reading.
        state: The newest state among the events; None if there was none.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: EventQueue[RunEvent | BaseException | None] = EventQueue()
        self._event_read = asyncio.Event()
        self._is_producer_waiting = False
        self.is_closed = False
        self.state: RunState | None = None

    def put(self, event: RunEvent) -> None:
        """Append an event."""
        if isinstance(event, StateEvent):
            self.state = event.state
        self._events.put(event)

    def message(self, text: str, cause: FailureCause | None = None) -> None:
        """Append a message of the launcher."""
        self._events.put(MessageEvent(text, cause=cause))

    def warning(self, text: str) -> None:
        """Append a warning of the launcher."""
        self._events.put(MessageEvent(text, MessageLevel.WARNING))

    def finish(self, error: BaseException | None = None) -> None:
        """Append the end of the events, or an error that is raised in the reader."""
        self._events.put(error)

    async def wait_for_space(self) -> None:
        """Wait until fewer than ``MAX_QUEUED_EVENTS`` events are unread, or the reader has stopped reading."""
        self._event_read.clear()
        # Set before the size is compared: from here on, the reader signals every event that it reads.
        self._is_producer_waiting = True
        while self._events.qsize() > MAX_QUEUED_EVENTS and not self.is_closed:
            await self._event_read.wait()
            self._event_read.clear()
        self._is_producer_waiting = False

    def close(self) -> None:
        """Stop waiting for space, since the events are not read any more."""
        self.is_closed = True
        self._event_read.set()

    def __iter__(self) -> Iterator[RunEvent]:
        while (event := self._events.get()) is not None:
            if self._is_producer_waiting:
                self._loop.call_soon_threadsafe(self._event_read.set)
            if isinstance(event, BaseException):
                raise event
            yield event
