"""The event loop on which all of this process's runs on Modal are started and followed."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import functools
import logging
import threading
import warnings
from typing import TypeVar

import modal.exception

from skyrl_modal.event_queue import wait_interruptibly

T = TypeVar("T")


@functools.cache
def event_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop, which runs in a thread. The loop of a notebook or of the application is not used."""
    loop = asyncio.new_event_loop()
    # Registered after modal's own exit handler, so that it is called before it.
    atexit.register(_ignore_open_streams)
    threading.Thread(target=loop.run_forever, name="skyrl-modal", daemon=True).start()
    return loop


def _ignore_open_streams() -> None:
    """Suppress what Python reports about log streams that are open when the process exits.

    Modal's client cannot close a log stream that waits (modal 1.6.4). asyncio logs an error for it. If the loop of the
    client has ended before, synchronicity 0.12 logs one, and Python warns about the coroutine ``_aclose``.
    """
    logging.getLogger("asyncio").addFilter(_is_unexpected_error)
    logging.getLogger("synchronicity.synchronizer").addFilter(lambda record: False)
    warnings.filterwarnings("ignore", "coroutine '_aclose' was never awaited", RuntimeWarning)


def _is_unexpected_error(record: logging.LogRecord) -> bool:
    """Return whether a message of asyncio, logged as the process exits, reports more than an open log stream.

    The text is CPython's (Objects/genobject.c, 3.11 to 3.13).
    """
    error = record.exc_info[1] if record.exc_info else None
    is_open_stream = isinstance(error, RuntimeError) and "aclose(): asynchronous generator" in str(error)
    return not (isinstance(error, modal.exception.ClientClosed) or is_open_stream)


def wait_for_future(future: concurrent.futures.Future[T], timeout: float | None = None) -> T:
    """Return the result of a future, and let signal handlers run while waiting.

    Raises:
        TimeoutError: It has no result within ``timeout`` seconds.
    """
    wait_interruptibly(lambda seconds: future in concurrent.futures.wait([future], seconds).done, timeout)
    return future.result(timeout=0)
