"""Waiting for what happens next, without missing a signal."""

from __future__ import annotations

import math
import queue
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: Seconds of the longest wait within which Python does not look for signals.
#: It runs their handlers in the main thread, between two of its steps. A signal that comes after the last step before a
#: wait, or that the kernel gives to another thread, does not end the wait: Ctrl-C would seem not to work.
LOOK = 0.2


class Events(queue.SimpleQueue[T]):
    """What happens, in order. It may be put from any thread, and by a signal's handler."""

    def next(self, deadline: float | None = None) -> T:
        """Wait for the next thing, and let signals be handled meanwhile.

        Args:
            deadline: A time of ``time.monotonic()``; None: none.

        Raises:
            queue.Empty: Nothing happened until the deadline.
        """
        while True:
            left = LOOK if deadline is None else min(LOOK, max(0.0, deadline - time.monotonic()))
            try:
                return self.get(timeout=left)
            except queue.Empty:
                if deadline is not None and time.monotonic() >= deadline:
                    raise


def wait_for(wait: Callable[[float], bool], timeout: float | None = None) -> bool:
    """Wait as a given function does, and let signals be handled meanwhile.

    Args:
        wait: Waits at most so many seconds, and gives whether what it waits for is there.
        timeout: Seconds; None: for ever.

    Returns:
        Whether what it waits for is there.
    """
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    while not wait(min(LOOK, max(0.0, deadline - time.monotonic()))):
        if time.monotonic() >= deadline:
            return False
    return True
