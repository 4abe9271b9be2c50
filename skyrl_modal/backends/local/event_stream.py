"""The events of a run that this process has started."""

from __future__ import annotations

import json
import os
import select
from collections.abc import Iterator
from io import FileIO

from skyrl_modal.event_queue import SIGNAL_CHECK_INTERVAL
from skyrl_modal.protocol.codec import ProtocolError, decode_tagged
from skyrl_modal.protocol.events import OutputEvent, ResultEvent, RunEvent, SupervisorEvent

#: Bytes of a chunk, and of the output's pipe.
CHUNK_SIZE = 1 << 20


class EventStream:
    """Reads the streams of a run and returns them as events.

    Nothing is read before it is taken: the memory of a run whose output is not read is limited by the pipes. The
    command does not wait for it, and the supervisor continues from output.log when the pipe is read.

    Args:
        output: A descriptor of the command's output.
        events: A descriptor of the supervisor's events.
        caller: A descriptor that must stay open until the run has ended; None if there is none.
    """

    def __init__(self, output: int, events: int, caller: int | None) -> None:
        self._output = FileIO(output)
        self._events = FileIO(events)
        self._caller = caller

    def events(self) -> Iterator[RunEvent]:
        """Yield the events until both streams have ended.

        The last event is a ResultEvent, unless the supervisor exited without a result.
        """
        result: ResultEvent | None = None
        # If the caller does not want further events, the pipes are closed.
        with self._output, self._events:
            for event in self._read():
                if isinstance(event, ResultEvent):
                    result = event  # kept until the end of the output, which has a stream of its own
                else:
                    yield event
        if self._caller is not None:
            os.close(self._caller)
            self._caller = None
        if result is not None:
            yield result

    def _read(self) -> Iterator[RunEvent]:
        buffer = memoryview(bytearray(CHUNK_SIZE))  # a new object of this size for each read would take longer
        line = b""
        is_open = {self._events.fileno(): True, self._output.fileno(): True}
        poller = select.poll()
        for descriptor in is_open:
            poller.register(descriptor, select.POLLIN)
        while any(is_open.values()):
            # With a timeout, so that signal handlers run.
            for descriptor, _ in poller.poll(SIGNAL_CHECK_INTERVAL * 1000):
                data = bytes(buffer[: os.readv(descriptor, [buffer])])
                if not data:
                    poller.unregister(descriptor)
                    is_open[descriptor] = False
                elif descriptor == self._output.fileno():
                    yield OutputEvent(data)
                else:
                    *lines, line = (line + data).split(b"\n")
                    yield from filter(None, map(_parse_event, lines))


def _parse_event(line: bytes) -> RunEvent | None:
    """Return the event of a line; None for a line that is not complete, as a supervisor that is killed may leave."""
    try:
        event: RunEvent | None = decode_tagged(SupervisorEvent, json.loads(line))
    except (ValueError, RecursionError, ProtocolError):
        return None
    return event
