"""The limit on the time until the command starts, in the container."""

from __future__ import annotations

import threading
from collections.abc import Callable


class StartTimer:
    """Calls a function unless it is stopped in time.

    Args:
        seconds: Seconds from now.
        on_expired: Called in another thread.
    """

    def __init__(self, seconds: float, on_expired: Callable[[], None]) -> None:
        self._on_expired = on_expired
        self._lock = threading.Lock()
        self._is_stopped = False
        self._has_expired = seconds <= 0
        self._timer: threading.Timer | None = None
        if not self._has_expired:
            self._timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), self._expire)
            self._timer.daemon = True
            self._timer.start()

    def _expire(self) -> None:
        with self._lock:
            if self._is_stopped:
                return
            self._has_expired = True
        self._on_expired()

    @property
    def has_expired(self) -> bool:
        """Whether the time was over before the timer was stopped."""
        return self._has_expired

    def stop(self) -> bool:
        """Stop the timer. Return whether it was in time: the function has not been called, and will not be."""
        with self._lock:
            self._is_stopped = True
        if self._timer is not None:
            self._timer.cancel()
        return not self._has_expired
