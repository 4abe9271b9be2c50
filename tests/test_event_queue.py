"""The queue of events: order, deadlines and signals."""

from __future__ import annotations

import queue
import signal
import threading
import time

import pytest

from skyrl_modal.event_queue import EventQueue, wait_interruptibly


@pytest.fixture
def events() -> EventQueue[int]:
    return EventQueue()


def test_events_are_taken_in_order(events: EventQueue[int]) -> None:
    """Events are returned in the order in which they were put."""
    for number in range(3):
        events.put(number)

    assert [events.get() for _ in range(3)] == [0, 1, 2]


def test_wait_for_keeps_other_events_in_order(events: EventQueue[int]) -> None:
    """Events that are not accepted stay in the queue, before later ones."""
    for number in (1, 3, 4, 5):
        events.put(number)

    assert events.wait_for(lambda number: number % 2 == 0) == 4
    events.put(6)
    assert [events.get() for _ in range(4)] == [1, 3, 5, 6]


def test_wait_for_finds_postponed_events(events: EventQueue[int]) -> None:
    """An event that an earlier wait did not accept is found by a later wait."""
    events.put(1)
    events.put(2)
    events.wait_for(lambda number: number == 2)

    assert events.wait_for(lambda number: number == 1, time.monotonic()) == 1


def test_deadline_without_event(events: EventQueue[int]) -> None:
    """queue.Empty is raised at the deadline, and no event is lost."""
    events.put(1)

    with pytest.raises(queue.Empty):
        events.wait_for(lambda number: number == 2, time.monotonic() + 0.01)
    assert events.get(time.monotonic()) == 1


def test_postponed_events_count(events: EventQueue[int]) -> None:
    """The size includes events that were postponed."""
    for number in (1, 2, 3):
        events.put(number)
    events.wait_for(lambda number: number == 2)

    assert events.qsize() == 2


def test_event_of_another_thread_is_received(events: EventQueue[int]) -> None:
    """A wait without deadline ends when another thread puts an event."""
    threading.Timer(0.01, events.put, [7]).start()

    assert events.get() == 7


def test_signal_handler_may_put_events(events: EventQueue[int]) -> None:
    """An event that a signal handler puts during a wait ends the wait."""
    previous = signal.signal(signal.SIGUSR1, lambda *_: events.put(1))
    try:
        main_thread = threading.main_thread().ident
        assert main_thread is not None
        threading.Timer(0.01, signal.pthread_kill, [main_thread, signal.SIGUSR1]).start()
        assert events.get(time.monotonic() + 10) == 1
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_wait_interruptibly_returns_the_condition() -> None:
    """The result is whether the condition held in time."""
    event = threading.Event()
    assert not wait_interruptibly(event.wait, timeout=0.01)

    event.set()
    assert wait_interruptibly(event.wait)
