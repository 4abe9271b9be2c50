"""Reports of a run that waits for a container, which can take hours: how long it waits, and Modal's reason."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from skyrl_modal.backends.modal.app_log import AppLog
from skyrl_modal.backends.modal.event_channel import EventChannel
from skyrl_modal.protocol.state import FailureCause, RunState

#: Seconds between two readings of the app's log while the run waits, at the beginning and at most.
FIRST_READ_INTERVAL = 1.0
MAX_READ_INTERVAL = 15.0
READ_INTERVAL_FACTOR = 1.5
#: Seconds after which the wait is reported: the first time, then at these intervals, up to the given number of seconds.
FIRST_REPORT = 15.0
REPORT_INTERVALS = ((60.0, 45.0), (600.0, 60.0), (float("inf"), 600.0))


def next_report(seconds: float) -> float:
    """Return when a wait is reported next that was reported after some seconds.

    Example:
        >>> [next_report(seconds) for seconds in (0, 15, 60, 540, 600, 1200)]
        [15.0, 60.0, 120.0, 600.0, 1200.0, 1800.0]
    """
    if seconds < FIRST_REPORT:
        return FIRST_REPORT
    interval = next(interval for limit, interval in REPORT_INTERVALS if seconds < limit)
    return seconds + interval


def format_seconds(seconds: float) -> str:
    """Return a duration for people.

    Example:
        >>> format_seconds(15.2), format_seconds(150), format_seconds(7500)
        ('15 s', '2 min 30 s', '2 h 05 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


class ContainerWait:
    """Reports while a run waits for its first container, or for the one that replaces a preempted container.

    The call's log shows when the wait begins and ends. Modal's lines are read from the app's log during the wait only,
    so that a running command costs no requests.

    Args:
        app_log: Modal's lines.
        channel: Receives the reports.
        submitted_at: When the call was submitted, in seconds since the epoch by this machine's clock.
        has_started: Returns whether the run's volume shows that a container has started: its log may be late.
    """

    def __init__(
        self,
        app_log: AppLog,
        channel: EventChannel,
        submitted_at: float,
        has_started: Callable[[], Awaitable[bool]],
    ) -> None:
        self._app_log = app_log
        self._channel = channel
        self._has_started = has_started
        self._begin = submitted_at
        self._is_waiting = True
        self._is_first = True
        self._changed = asyncio.Event()
        self._reason = ""

    # -- what the call's log shows -----------------------------------------------------------------------------------

    def entry_arrived(self) -> None:
        """Note an entry of the call's log, which a container has written."""
        if self._is_first:
            self._is_first = False
            self._end_wait()

    def state_arrived(self, state: RunState) -> None:
        """Note a new state, which a container has reported."""
        if self._is_waiting and not self._is_first:
            self._end_wait()

    def message_arrived(self, cause: FailureCause | None) -> None:
        """Note a message with its cause. A preempted container reports it, and another one follows."""
        if cause is FailureCause.PREEMPTED and not self._is_waiting:
            self._is_waiting, self._begin = True, time.time()
            self._changed.set()

    def _end_wait(self) -> None:
        self._is_waiting = False
        self._changed.set()

    # -- reports -----------------------------------------------------------------------------------------------------

    async def report(self) -> None:
        """Report all waits, until cancelled."""
        while True:
            self._changed.clear()
            if self._is_waiting:
                await self._report_wait()
            else:
                await self._changed.wait()

    async def _report_wait(self) -> None:
        """Report one wait until it ends."""
        loop = asyncio.get_running_loop()
        begin, interval, due = loop.time(), FIRST_READ_INTERVAL, next_report(0)
        while self._is_waiting:
            is_first = self._is_first
            lines = await self._app_log.read_new()
            if is_first and not self._is_waiting:
                return  # the container has started meanwhile, so the reasons are outdated
            self._report_lines(lines)
            if loop.time() - begin >= due:
                due = next_report(due)
                if is_first and await self._has_started():
                    self._is_first = self._is_waiting = False
                    return
                self._report_elapsed()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(interval, max(0.0, begin + due - loop.time()))):
                    await self._changed.wait()
            self._changed.clear()
            interval = min(interval * READ_INTERVAL_FACTOR, MAX_READ_INTERVAL)

    def _report_lines(self, lines: list[str]) -> None:
        for line in lines:
            if line != self._reason:  # Modal repeats the reason of a long wait
                self._channel.message(f"Modal: {line}")
            self._reason = line

    def _report_elapsed(self) -> None:
        what = "pending" if self._is_first else "waiting for another container"
        reason = f"Modal: {self._reason}" if self._reason else "Modal has not started a container yet"
        self._channel.message(f"{what} for {format_seconds(max(0.0, time.time() - self._begin))}. {reason}")

    async def report_rest(self) -> None:
        """Report Modal's lines that were not read, since they may explain why the run has ended."""
        self._report_lines(await self._app_log.read_new())
