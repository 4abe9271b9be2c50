"""The events of a run that this process has started."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator

from skyrl_modal.event_queue import EventQueue
from skyrl_modal.protocol.codec import ProtocolError, decode_tagged
from skyrl_modal.protocol.events import OutputEvent, ResultEvent, RunEvent, SupervisorEvent

#: Chunks of output that are read before the reader of the events has received them: they limit the memory of a run
#: whose output is not read. The command does not wait; the supervisor continues from output.log when the pipe is read.
MAX_QUEUED_CHUNKS = 4
#: Bytes of a chunk, and of the output's pipe.
CHUNK_SIZE = 1 << 20


class EventStream:
    """Reads the streams of a run and returns them as events.

    Args:
        output: A descriptor of the command's output.
        events: A descriptor of the supervisor's events.
        caller: A descriptor that must stay open until the run has ended; None if there is none.
    """

    def __init__(self, output: int, events: int, caller: int | None) -> None:
        self._queue: EventQueue[RunEvent | None] = EventQueue()
        self._queued_chunks = threading.Semaphore(MAX_QUEUED_CHUNKS)
        self._caller = caller
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._read_output, args=(output,), name="run-output", daemon=True),
            threading.Thread(target=self._read_events, args=(events,), name="run-events", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _read_output(self, descriptor: int) -> None:
        with open(descriptor, "rb", buffering=0) as stream:
            while chunk := stream.read(CHUNK_SIZE):
                self._queued_chunks.acquire()
                if self._is_closed:
                    return
                self._queue.put(OutputEvent(chunk))
        self._queue.put(None)

    def _read_events(self, descriptor: int) -> None:
        with open(descriptor, "rb") as stream:
            for line in stream:
                event = _parse_event(line)
                if event is not None:
                    self._queue.put(event)
        self._queue.put(None)

    def events(self) -> Iterator[RunEvent]:
        """Yield the events until both streams have ended.

        The last event is a ResultEvent, unless the supervisor exited without a result.
        """
        result: ResultEvent | None = None
        open_streams = len(self._threads)
        try:
            while open_streams:
                event = self._queue.get()
                if event is None:
                    open_streams -= 1
                elif isinstance(event, ResultEvent):
                    result = event  # kept until the end of the output, which has a stream of its own
                else:
                    yield event
                    if isinstance(event, OutputEvent):
                        self._queued_chunks.release()
        finally:
            # If the caller does not want further events, the thread that waits for space closes its pipe.
            self._is_closed = True
            self._queued_chunks.release()
        if self._caller is not None:
            os.close(self._caller)
            self._caller = None
        if result is not None:
            yield result


def _parse_event(line: bytes) -> RunEvent | None:
    """Return the event of a line; None for a line that is not complete, as a supervisor that is killed may leave."""
    try:
        event: RunEvent | None = decode_tagged(SupervisorEvent, json.loads(line))
    except (ValueError, RecursionError, ProtocolError):
        return None
    return event
