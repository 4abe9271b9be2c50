"""The events of a run that this process has started."""

from __future__ import annotations

import contextlib
import json
import os

from skyrl_modal.backends.local.event_stream import CHUNK_SIZE, EventStream
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
    """The output stays in its pipe until the events are taken, so that memory stays limited."""
    streams = Streams()
    os.set_blocking(streams.output, False)
    written = 0
    with contextlib.suppress(BlockingIOError):
        while written < 4 * CHUNK_SIZE:
            written += os.write(streams.output, bytes(CHUNK_SIZE))

    assert written < 4 * CHUNK_SIZE
    assert sum(len(event.data) for event in streams.close() if isinstance(event, OutputEvent)) == written


def test_an_event_may_arrive_in_several_parts() -> None:
    """An event that is written in parts, between parts of the output, is returned once."""
    streams = Streams()
    events = streams.stream.events()
    line = line_of(MessageEvent("a" * 100_000))
    received: list[RunEvent] = []
    for start in range(0, len(line), 30_000):
        os.write(streams.output, b"o")
        os.write(streams.events, line[start : start + 30_000])
        received.append(next(events))
    os.close(streams.output)
    os.close(streams.events)
    received += events

    assert b"".join(event.data for event in received if isinstance(event, OutputEvent)) == b"oooo"
    assert [event for event in received if isinstance(event, MessageEvent)] == [MessageEvent("a" * 100_000)]
