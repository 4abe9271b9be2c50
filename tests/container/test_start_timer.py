"""Tests of ``container.start_timer``."""

from __future__ import annotations

import threading

from skyrl_modal.container.start_timer import StartTimer


def test_timer_expires_once() -> None:
    """The function is called when the time is over, and ``stop`` states that it is too late."""
    calls = threading.Semaphore(0)
    timer = StartTimer(0.01, calls.release)

    assert calls.acquire(timeout=30)
    assert timer.has_expired
    assert not timer.stop()
    assert not calls.acquire(blocking=False)


def test_stopped_timer_does_not_expire() -> None:
    """A timer that is stopped in time does not call the function, also if it is stopped twice."""
    timer = StartTimer(600, lambda: None)

    assert timer.stop()
    assert timer.stop()
    assert not timer.has_expired


def test_time_that_is_over_is_not_awaited() -> None:
    """Without time left, the timer has expired at its creation, and the function is not called."""
    calls: list[int] = []
    timer = StartTimer(-5, lambda: calls.append(1))

    assert timer.has_expired
    assert not timer.stop()
    assert calls == []


def test_longest_time() -> None:
    """A time that is longer than a thread can wait is no error."""
    timer = StartTimer(1e15, lambda: None)

    assert timer.stop()
