"""The events of a run that this process has started."""

from __future__ import annotations

import json
import os

from skyrl_modal.backends.local.event_stream import CHUNK_SIZE, MAX_QUEUED_CHUNKS, EventStream
from skyrl_modal.protocol.codec import encode_tagged
from skyrl_modal.protocol.events import MessageEvent, OutputEvent, ResultEvent, RunEvent, StateEvent, SupervisorEvent
from skyrl_modal.protocol.result import RunResultRecord
from skyrl_modal.protocol.state import RunState

RESULT = ResultEvent(
    RunResultRecord(
        run_id="r1",
        state=RunState.SUCCEEDED,
        returncode=0,
        attempts=1,
        started_at="2000-01-01T00:00:00+00:00",
        duration=1.0,
    )
)


def line_of(event: SupervisorEvent) -> bytes:
    """Return an event as the supervisor writes it."""
    return json.dumps(encode_tagged(event)).encode() + b"\n"


class Streams:
    """An event stream and the ends of its pipes that a supervisor has."""

    def __init__(self) -> None:
        output, self.output = os.pipe()
        events, self.events = os.pipe()
        self.stream = EventStream(output, events, None)

    def close(self) -> list[RunEvent]:
        """Close the supervisor's ends, and return all events."""
        os.close(self.output)
        os.close(self.events)
        return list(self.stream.events())


def test_the_result_is_last() -> None:
    """The result is returned after all output, although it may arrive before."""
    streams = Streams()
    os.write(streams.events, line_of(StateEvent(RunState.RUNNING)) + line_of(RESULT) + line_of(MessageEvent("late")))
    os.write(streams.output, b"output")

    *events, last = streams.close()

    assert last == RESULT
    assert sorted(events, key=str) == [MessageEvent("late"), OutputEvent(b"output"), StateEvent(RunState.RUNNING)]


def test_incomplete_and_unknown_events_are_ignored() -> None:
    """A line that a killed supervisor has not completed, and an event of a newer version, are ignored."""
    streams = Streams()
    os.write(streams.events, b'{"type": "LaterEvent"}\n' + line_of(MessageEvent("text")) + line_of(RESULT)[:20])

    assert streams.close() == [MessageEvent("text")]


def test_output_that_is_not_read_is_not_collected() -> None:
    """Only a limited number of chunks is read before the events are taken, so that memory stays limited."""
    streams = Streams()
    os.set_blocking(streams.output, False)
    written = 0
    limit = (MAX_QUEUED_CHUNKS + 2) * CHUNK_SIZE
    while written < 2 * limit:
        try:
            written += os.write(streams.output, bytes(CHUNK_SIZE))
        except BlockingIOError:
            if streams.stream._queue.qsize() >= MAX_QUEUED_CHUNKS:
                break

    assert written < 2 * limit
    assert sum(len(event.data) for event in streams.close() if isinstance(event, OutputEvent)) == written
