"""Requests to the Dict with the leases, each with a time limit."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from skyrl_modal.event_queue import EventQueue

T = TypeVar("T")

#: Seconds for one request. A healthy one takes some milliseconds.
REQUEST_TIMEOUT = 10.0


class LeaseStore(Protocol):
    """What is used of ``modal.Dict``."""

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value."""

    def put(self, key: str, value: str, *, skip_if_exists: bool = False) -> bool:
        """Set a value. With ``skip_if_exists``, return False if there was one."""

    def pop(self, key: str, default: Any) -> Any:
        """Remove a value and return it."""


class StoreUnavailable(Exception):
    """A request failed, or received no reply in time."""


def send(request: Callable[[], T], timeout: float = REQUEST_TIMEOUT) -> T:
    """Send a request in a thread, since Modal's client may wait without a limit while there is no network.

    Raises:
        StoreUnavailable: It failed, or there was no reply within ``timeout`` seconds.
    """
    replies: EventQueue[tuple[T | None, Exception | None]] = EventQueue()

    def work() -> None:
        try:
            replies.put((request(), None))
        except Exception as error:  # any error of Modal's client: the run does not depend on it
            replies.put((None, error))

    threading.Thread(target=work, name="lease-request", daemon=True).start()
    try:
        value, error = replies.get(time.monotonic() + timeout)
    except queue.Empty:
        raise StoreUnavailable(f"no reply within {timeout:g} s") from None
    if error is not None:
        raise StoreUnavailable(f"{error}" or type(error).__name__) from error
    return value  # type: ignore[return-value]  # None only if the request returned None
