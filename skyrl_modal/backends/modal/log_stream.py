"""The output of a call on Modal: chunks of text, maybe repeated, late or damaged, made one stream again."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from skyrl_modal.backends import Event
from skyrl_modal.container.modal_entrypoint import PREFIX
from skyrl_modal.event_queue import Events

#: Events that may wait for whoever takes them: memory stays flat where the output comes faster than it goes.
AHEAD = 256


class Channel:
    """Events from the event loop to a thread, held back where the thread does not keep up."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: Events[Event | BaseException | None] = Events()
        self._taken = asyncio.Event()
        self._is_full = False
        #: Nobody takes any more.
        self.is_closed = False

    def put(self, event: Event) -> None:
        """Give one event."""
        self._events.put(event)

    def line(self, text: str) -> None:
        """Give a line of ours."""
        self._events.put(("line", text))

    def end(self, error: BaseException | None = None) -> None:
        """Nothing comes any more; an error is raised where the events are taken."""
        self._events.put(error)

    async def room(self) -> None:
        """Wait until more can be put."""
        self._taken.clear()
        self._is_full = True  # from here on each event that is taken is told, so none of them can be missed
        while self._events.qsize() > AHEAD and not self.is_closed:
            await self._taken.wait()
            self._taken.clear()
        self._is_full = False

    def close(self) -> None:
        """Nobody takes any more: what waits for room goes on."""
        self.is_closed = True
        self._taken.set()

    def __iter__(self) -> Iterator[Event]:
        while (event := self._events.next()) is not None:
            if self._is_full:
                self._loop.call_soon_threadsafe(self._taken.set)
            if isinstance(event, BaseException):
                raise event
            yield event


class LogView:
    """What was told of a call's log: each piece once, whatever the connection repeats."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._told = {"stdout": 0, "stderr": 0, "system": 0}
        self._skip = dict(self._told)
        self._hash = hashlib.sha256()
        self._lines = {"stderr": "", "system": ""}
        self._grown = asyncio.Event()
        #: All was told that will be.
        self.is_over = False

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
            self._channel.put(("output", data))
            self._grown.set()
            return
        *whole, self._lines[source] = (self._lines[source] + fresh).split("\n")
        for line in whole:
            self._tell(source, line)

    def _tell(self, source: str, line: str) -> None:
        if source == "system":
            self._channel.line(f"Modal: {line}")
        else:
            self._channel.line(line.removeprefix(PREFIX))

    def end(self) -> None:
        """Tell last lines that have no end."""
        for source, line in self._lines.items():
            if line:
                self._tell(source, line)
            self._lines[source] = ""

    async def reached(self, characters: int, patience: float) -> None:
        """Wait until so many characters of the output were told, or nothing has come for so many seconds."""
        while self._told["stdout"] < characters:
            self._grown.clear()
            try:
                async with asyncio.timeout(patience):
                    await self._grown.wait()
            except TimeoutError:
                return

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


def facts_of(text: str) -> tuple[int, str]:
    """How the container counts what it shows: characters, and their digest."""
    return len(text), hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
