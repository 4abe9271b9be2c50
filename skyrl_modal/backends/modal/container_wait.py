"""Reports of a run that waits for a container, which can take hours: that it waits, and Modal's reason."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from skyrl_modal.backends.modal.app_log import AppLog
from skyrl_modal.backends.modal.event_channel import EventChannel
from skyrl_modal.backends.modal.start_progress import StartProgress
from skyrl_modal.protocol.state import FailureCause, RunState

#: Seconds between two readings of the app's log while the run waits, at the beginning and at most.
FIRST_READ_INTERVAL = 1.0
MAX_READ_INTERVAL = 15.0
READ_INTERVAL_FACTOR = 1.5
#: Seconds after which the run's volume is read, to find out whether its log is late: the first time, then at these
#: intervals, up to the given number of seconds.
FIRST_CHECK = 15.0
CHECK_INTERVALS = ((60.0, 45.0), (600.0, 60.0), (float("inf"), 600.0))


def next_check(seconds: float) -> float:
    """Return when the volume is read next after some seconds.

    Example:
        >>> [next_check(seconds) for seconds in (0, 15, 60, 540, 600, 1200)]
        [15.0, 60.0, 120.0, 600.0, 1200.0, 1800.0]
    """
    if seconds < FIRST_CHECK:
        return FIRST_CHECK
    interval = next(interval for limit, interval in CHECK_INTERVALS if seconds < limit)
    return seconds + interval


class ContainerWait:
    """Reports while a run waits for its first container, or for the one that replaces a preempted container.

    The call's log shows when the wait begins and ends. Modal's lines are read from the app's log during the wait only,
    so that a running command costs no requests.

    Args:
        app_log: Modal's lines.
        channel: Receives Modal's lines.
        progress: Receives that the run waits, since when, and why.
        submitted_at: When the call was submitted, in seconds since the epoch by this machine's clock.
        has_started: Returns whether the run's volume shows that a container has started: its log may be late.
    """

    def __init__(
        self,
        app_log: AppLog,
        channel: EventChannel,
        progress: StartProgress,
        submitted_at: float,
        has_started: Callable[[], Awaitable[bool]],
    ) -> None:
        self._app_log = app_log
        self._channel = channel
        self._progress = progress
        self._has_started = has_started
        progress.wait_for_container(submitted_at, is_first=True)
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
            self._is_waiting = True
            self._progress.wait_for_container(time.time(), is_first=False)
            self._changed.set()

    def _end_wait(self) -> None:
        self._is_waiting = False
        self._progress.end()
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
        begin, interval, due = loop.time(), FIRST_READ_INTERVAL, next_check(0)
        while self._is_waiting:
            is_first = self._is_first
            lines = await self._app_log.read_new()
            if is_first and not self._is_waiting:
                return  # the container has started meanwhile, so the reasons are outdated
            self._report_lines(lines)
            if loop.time() - begin >= due:
                due = next_check(due)
                if is_first and await self._has_started():
                    self._is_first = False
                    self._end_wait()
                    return
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
            if self._is_waiting:
                self._progress.explain(f"Modal: {line}")

    async def report_rest(self) -> None:
        """Report Modal's lines that were not read, since they may explain why the run has ended."""
        self._report_lines(await self._app_log.read_new())
