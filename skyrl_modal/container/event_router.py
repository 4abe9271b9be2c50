"""Deliver the events of rank 0. Events that require no decision are handled on the way."""

from __future__ import annotations

from collections.abc import Callable

from skyrl_modal.container.events import ChildExited, DeadlineReached, Event
from skyrl_modal.event_queue import Empty, EventQueue


class EventRouter:
    """The queue of rank 0: any thread or signal handler puts events into it, and the supervisor's thread takes them.

    Args:
        reap: Called in the thread that takes events, after a child of the supervisor has exited.
        is_outdated: Whether an event belongs to a Ray that was stopped before. Such events are dropped.
    """

    def __init__(self, *, reap: Callable[[], None], is_outdated: Callable[[Event], bool]) -> None:
        self._queue: EventQueue[Event] = EventQueue()
        self._reap = reap
        self._is_outdated = is_outdated

    def put(self, event: Event) -> None:
        """Append an event."""
        self._queue.put(event)

    def get(self, deadline: float | None) -> Event:
        """Remove and return the next event; DeadlineReached if there is none until the deadline.

        Args:
            deadline: A time of ``time.monotonic()``; None for no deadline.
        """
        return self.wait_for(lambda event: True, deadline)

    def wait_for(self, accept: Callable[[Event], bool], deadline: float | None) -> Event:
        """Remove and return the next event that ``accept`` accepts. The other events stay in the queue, in their order.

        Args:
            accept: Whether the caller handles an event.
            deadline: A time of ``time.monotonic()``; None for no deadline.

        Returns:
            The event; DeadlineReached if there is none until the deadline.
        """
        while True:
            try:
                event = self._queue.wait_for(
                    lambda event: isinstance(event, ChildExited) or self._is_outdated(event) or accept(event), deadline
                )
            except Empty:
                return DeadlineReached()
            if isinstance(event, ChildExited):
                self._reap()
            elif not self._is_outdated(event):
                return event
