"""The event loop on which all of this process's runs on Modal are started and followed."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import functools
import logging
import os
import threading
from typing import TypeVar

import modal.exception

from skyrl_modal.event_queue import wait_interruptibly

T = TypeVar("T")

#: Seconds in which the event loop has to stop when the process exits. Its steps are short.
EXIT_TIMEOUT = 2.0


@functools.cache
def event_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop, which runs in a thread. The loop of a notebook or of the application is not used."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="skyrl-modal", daemon=True)
    thread.start()
    # Registered after modal's own exit handler, so that it is called before it.
    atexit.register(_stop, loop, thread, os.getpid())
    return loop


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread, pid: int) -> None:
    """Stop the event loop as the process exits, with its tasks where they are.

    Modal's client stops its own loop next, which ends the requests that wait, such as a log stream. The tasks that wait
    for them would then send further requests to the loop that has ended: to close the stream, or to open it again. Each
    of them would be reported on standard error (modal 1.6.4 with synchronicity 0.12: "Synchronizer thread unexpectedly
    died", "coroutine '_aclose' was never awaited").
    """
    if os.getpid() != pid:  # a child process that was forked has no thread of its own
        return
    loop.set_exception_handler(lambda loop, context: None)  # Python reports the tasks that have not ended
    logging.getLogger("asyncio").addFilter(_is_unexpected_error)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(EXIT_TIMEOUT)


def _is_unexpected_error(record: logging.LogRecord) -> bool:
    """Return whether a message of asyncio, logged as the process exits, reports more than a request that was waiting.

    The loop of Modal's client logs an error for each of them. The text is CPython's (Objects/genobject.c, 3.11 to
    3.13).
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
