"""Waiting for events without missing a signal. Standard library only."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

TYPE_CHECKING = False  # the same as in typing, whose import takes time

if TYPE_CHECKING:
    from queue import Empty as Empty
    from queue import SimpleQueue
    from typing import Generic, TypeVar

    T = TypeVar("T")
else:
    try:
        from _queue import Empty, SimpleQueue  # the same classes: the import of queue takes a millisecond
    except ImportError:
        from queue import Empty, SimpleQueue
    T = object

    class Generic:
        """A class with a parameter that is of no use at run time."""

        def __class_getitem__(cls, item: object) -> type:
            return cls


#: Seconds of the longest wait during which Python does not run signal handlers.
#: Python runs signal handlers between bytecode instructions of the main thread. A signal that arrives just before a
#: blocking call, or that the kernel delivers to another thread, does not interrupt that call: Ctrl-C would seem not to
#: work.
SIGNAL_CHECK_INTERVAL = 0.2


class EventQueue(Generic[T]):
    """A first-in, first-out queue. Any thread or signal handler may put events into it; one thread takes them."""

    def __init__(self) -> None:
        # SimpleQueue.put is reentrant, which queue.Queue.put is not: a signal handler may call it.
        self._queue: SimpleQueue[T] = SimpleQueue()
        self._postponed: deque[T] = deque()

    def put(self, event: T) -> None:
        """Append an event."""
        self._queue.put(event)

    def qsize(self) -> int:
        """Return the approximate number of events in the queue."""
        return self._queue.qsize() + len(self._postponed)

    def get(self, deadline: float | None = None) -> T:
        """Remove and return the first event; wait until there is one, and let signal handlers run meanwhile.

        Args:
            deadline: A time of ``time.monotonic()``; None for no deadline.

        Raises:
            queue.Empty: There was no event until the deadline.
        """
        if self._postponed:
            return self._postponed.popleft()
        return self._get_new(deadline)

    def wait_for(self, accept: Callable[[T], bool], deadline: float | None = None) -> T:
        """Remove and return the first event that ``accept`` accepts. The other events keep their order.

        Args:
            accept: Called once for each event.
            deadline: A time of ``time.monotonic()``; None for no deadline.

        Raises:
            queue.Empty: There was no such event until the deadline.
        """
        for number, event in enumerate(self._postponed):
            if accept(event):
                del self._postponed[number]
                return event
        while True:
            event = self._get_new(deadline)
            if accept(event):
                return event
            self._postponed.append(event)

    def _get_new(self, deadline: float | None) -> T:
        while True:
            remaining = math.inf if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                return self._queue.get(timeout=min(SIGNAL_CHECK_INTERVAL, remaining))
            except Empty:
                if deadline is not None and time.monotonic() >= deadline:
                    raise


def wait_interruptibly(wait: Callable[[float], bool], timeout: float | None = None) -> bool:
    """Call a blocking function with short timeouts, so that signal handlers run meanwhile.

    Args:
        wait: Waits for at most the given number of seconds; returns whether its condition holds, like ``Event.wait``.
        timeout: Seconds; None for no limit.

    Returns:
        Whether the condition holds.

    Example:
        >>> import threading
        >>> wait_interruptibly(threading.Event().wait, timeout=0)
        False
    """
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    while not wait(min(SIGNAL_CHECK_INTERVAL, max(0.0, deadline - time.monotonic()))):
        if time.monotonic() >= deadline:
            return False
    return True
