"""Tests of the log of a call, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from skyrl_modal.backends.modal.event_channel import MAX_QUEUED_EVENTS, EventChannel
from skyrl_modal.backends.modal.log_stream import LogStream, stream_digest
from skyrl_modal.protocol.events import MessageEvent, OutputEvent, RunEvent
from skyrl_modal.protocol.log_lines import prefixed
from skyrl_modal.protocol.state import FailureCause


@pytest.fixture
def channel() -> Iterator[EventChannel]:
    """A channel whose event loop does not run: nothing here waits for it."""
    loop = asyncio.new_event_loop()
    yield EventChannel(loop)
    loop.close()


def events_of(channel: EventChannel) -> list[RunEvent]:
    """Finish a channel and return its events."""
    channel.finish()
    return list(channel)


def output_of(events: list[RunEvent]) -> str:
    """Return the output in events."""
    return b"".join(event.data for event in events if isinstance(event, OutputEvent)).decode()


def test_repeated_log_is_forwarded_once(channel: EventChannel) -> None:
    """After a reconnection, only the text that was not forwarded before is forwarded, however it is cut."""
    stream = LogStream(channel)
    stream.add("stdout", "one\ntw")
    stream.restart()
    for piece in ("on", "e\n", "two\nthree\n"):
        stream.add("stdout", piece)

    assert output_of(events_of(channel)) == "one\ntwo\nthree\n"


def test_sources_are_deduplicated_separately(channel: EventChannel) -> None:
    """A repeated log may have its entries in another order, as long as each source keeps its own."""
    stream = LogStream(channel)
    stream.add("stdout", "output\n")
    stream.add("stderr", "message\n")
    stream.restart()
    stream.add("stderr", "message\n")
    stream.add("stdout", "output\n")

    assert events_of(channel) == [OutputEvent(b"output\n"), MessageEvent("message")]


def test_message_keeps_its_cause(channel: EventChannel) -> None:
    """A message of the container is forwarded without its prefix, with the cause that it reports."""
    LogStream(channel).add("stderr", prefixed("Ray exited on rank 1", FailureCause.RAY_EXITED))

    assert events_of(channel) == [MessageEvent("Ray exited on rank 1", cause=FailureCause.RAY_EXITED)]


def test_line_without_newline_is_forwarded_at_end(channel: EventChannel) -> None:
    """A last line that has no newline is forwarded by ``flush``, once."""
    stream = LogStream(channel)
    stream.add("stderr", "no new")
    stream.add("stderr", "line")
    stream.flush()
    stream.flush()

    assert events_of(channel) == [MessageEvent("no newline")]


def test_modals_messages_are_attributed(channel: EventChannel) -> None:
    """A message of Modal itself is forwarded as Modal's."""
    LogStream(channel).add("system", "Runner interrupted\n")

    assert events_of(channel) == [MessageEvent("Modal: Runner interrupted")]


def test_missing_end_is_added_once(channel: EventChannel) -> None:
    """The end that the log did not bring is forwarded, and the log itself is ignored from then on."""
    stream = LogStream(channel)
    stream.add("stdout", "one\n")

    assert stream.add_missing_end("one\ntwo\n")
    assert stream.is_complete(stream_digest("one\ntwo\n"))
    assert stream.is_finished
    assert output_of(events_of(channel)) == "one\ntwo\n"


def test_damaged_output_is_not_extended(channel: EventChannel) -> None:
    """Nothing is forwarded if the forwarded output is not the beginning of the complete output."""
    stream = LogStream(channel)
    stream.add("stdout", "on\ufffd\n")

    assert not stream.add_missing_end("one\ntwo\n")
    assert output_of(events_of(channel)) == "on\ufffd\n"


def test_wait_ends_when_output_is_complete() -> None:
    """The wait for the rest of the output ends as soon as all of it was forwarded."""

    async def wait() -> bool:
        stream = LogStream(EventChannel(asyncio.get_running_loop()))
        expected = stream_digest("one\ntwo\n")
        stream.add("stdout", "one\n")
        waiting = asyncio.ensure_future(stream.wait_until_complete(expected, 60))
        await asyncio.sleep(0)
        stream.add("stdout", "two\n")
        await asyncio.wait_for(waiting, 10)
        return stream.is_complete(expected)

    assert asyncio.run(wait())


def test_wait_ends_without_output() -> None:
    """The wait ends if no output arrives for the timeout."""

    async def wait() -> bool:
        stream = LogStream(EventChannel(asyncio.get_running_loop()))
        expected = stream_digest("one\n")
        await asyncio.wait_for(stream.wait_until_complete(expected, 0.01), 10)
        return stream.is_complete(expected)

    assert not asyncio.run(wait())


def test_producer_waits_for_the_reader() -> None:
    """A producer waits while too many events are unread, and continues when the reader has read some."""

    async def produce() -> None:
        channel = EventChannel(asyncio.get_running_loop())
        for _ in range(MAX_QUEUED_EVENTS + 1):
            channel.put(OutputEvent(b"x"))
        waiting = asyncio.ensure_future(channel.wait_for_space())
        await asyncio.sleep(0)
        assert not waiting.done()

        await asyncio.to_thread(next, iter(channel))

        await asyncio.wait_for(waiting, 10)

    asyncio.run(produce())


def test_producer_continues_without_a_reader() -> None:
    """A producer does not wait for a reader that has stopped reading."""

    async def produce() -> None:
        channel = EventChannel(asyncio.get_running_loop())
        for _ in range(MAX_QUEUED_EVENTS + 1):
            channel.put(OutputEvent(b"x"))
        waiting = asyncio.ensure_future(channel.wait_for_space())
        await asyncio.sleep(0)

        channel.close()

        await asyncio.wait_for(waiting, 10)

    asyncio.run(produce())


def test_error_is_raised_in_the_reader(channel: EventChannel) -> None:
    """An error that finishes a channel is raised after the events that precede it."""
    channel.put(OutputEvent(b"x"))
    channel.finish(ValueError("damaged"))
    events = iter(channel)

    assert next(events) == OutputEvent(b"x")
    with pytest.raises(ValueError, match="damaged"):
        next(events)
