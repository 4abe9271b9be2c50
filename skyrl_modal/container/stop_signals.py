"""Convert the exceptions by which Modal stops a function into requests to stop the run.

Modal raises them in the main thread: ``InputCancellation`` if the call is cancelled, KeyboardInterrupt (SIGINT) if the
container is preempted or its app ends. The supervisor therefore runs in another thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from skyrl_modal.event_queue import wait_interruptibly
from skyrl_modal.protocol.state import StopReason

T = TypeVar("T")


class RestartNeeded(Exception):
    """The run continues on a new cluster, which the function's retry policy starts because this input fails."""


def run_with_stop_requests(
    run: Callable[[], T], request_stop: Callable[[StopReason], None]
) -> tuple[T, BaseException | None]:
    """Call a function in another thread, and request a stop for each exception that is raised in this one.

    Args:
        run: The function.
        request_stop: Receives the reason; ``StopReason.KILL`` from the second exception on.

    Returns:
        What the function returned, and the last exception; None if there was none.

    Raises:
        RuntimeError: The function raised an exception, which is its cause.
    """
    results: list[T] = []
    failures: list[BaseException] = []
    finished = threading.Event()

    def work() -> None:
        try:
            results.append(run())
        except BaseException as error:  # raised again below, in the thread that Modal has called
            failures.append(error)
        finally:
            finished.set()

    threading.Thread(target=work, name="supervisor").start()
    exceptions: list[BaseException] = []
    handled = 0
    # Not Thread.join(): if an exception interrupts it, it may consider a running thread ended (CPython up to 3.12).
    while True:
        try:
            # Inside of the `try`, since a further exception may be raised while the first is handled.
            while handled < len(exceptions):
                request_stop(reason_of(exceptions[0]) if handled == 0 else StopReason.KILL)
                handled += 1
            wait_interruptibly(finished.wait)
            break
        except BaseException as error:  # any exception in this thread is a request to stop
            exceptions.append(error)
    if not results:
        raise RuntimeError("the supervisor failed") from failures[0]
    return results[0], exceptions[-1] if exceptions else None


def reason_of(error: BaseException) -> StopReason:
    """Return why Modal stops the function."""
    return StopReason.CONTAINER_ENDING if isinstance(error, KeyboardInterrupt) else StopReason.CANCELLED


def wait_for_stop(timeout: float) -> BaseException | None:
    """Wait until Modal stops the function.

    Args:
        timeout: Seconds.

    Returns:
        The exception that Modal raised; None if it raised none in time.
    """
    try:
        wait_interruptibly(threading.Event().wait, timeout)
    except BaseException as error:
        return error
    return None
