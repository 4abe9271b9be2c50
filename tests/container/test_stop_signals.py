"""Exceptions in the main thread become requests to stop."""

from __future__ import annotations

import signal
import sys
import threading
import time
from types import FrameType

import pytest

from skyrl_modal.container.stop_signals import run_with_stop_requests, wait_for_stop
from skyrl_modal.event_queue import wait_interruptibly
from skyrl_modal.protocol.state import StopReason


def interrupt_main_thread() -> None:
    """Send SIGINT to the main thread while it waits, as Modal does when a container ends."""
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    while not is_waiting(sys._current_frames()[main_thread]):
        time.sleep(0.001)
    signal.pthread_kill(main_thread, signal.SIGINT)


def is_waiting(frame: FrameType | None) -> bool:
    """Return whether a stack contains the function that waits."""
    while frame is not None and frame.f_code is not wait_interruptibly.__code__:
        frame = frame.f_back
    return frame is not None


def test_result_is_returned() -> None:
    """Without an exception, the function's result is returned and no stop is requested."""
    assert run_with_stop_requests(lambda: 7, pytest.fail) == (7, None)


def test_interrupts_become_stop_requests() -> None:
    """The first interrupt is a request with the grace period, the second one without it."""
    reasons: list[StopReason] = []
    requested = threading.Semaphore(0)

    def run() -> str:
        for _ in range(2):
            interrupt_main_thread()
            requested.acquire()
        return "stopped"

    def request_stop(reason: StopReason) -> None:
        reasons.append(reason)
        requested.release()

    result, stopped_by = run_with_stop_requests(run, request_stop)

    assert result == "stopped"
    assert isinstance(stopped_by, KeyboardInterrupt)
    assert reasons == [StopReason.CONTAINER_ENDING, StopReason.KILL]


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_failure_of_the_function_is_raised(error: type[BaseException]) -> None:
    """An exception of the function is the cause of a RuntimeError, which is no request to stop."""

    def run() -> None:
        raise error

    with pytest.raises(RuntimeError) as caught:
        run_with_stop_requests(run, pytest.fail)

    assert type(caught.value.__cause__) is error


def test_waiting_for_a_stop() -> None:
    """The exception that stops the function is returned; None after the timeout."""
    assert wait_for_stop(0.01) is None

    threading.Timer(0.01, interrupt_main_thread).start()
    assert isinstance(wait_for_stop(10), KeyboardInterrupt)
