"""Retries of requests to Modal that failed for a reason that passes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

import modal.exception
import stamina
from stamina import instrumentation
from stamina.instrumentation import RetryDetails, RetryHook

from skyrl_modal.backends.modal.errors import error_text, is_transient
from skyrl_modal.protocol.log_lines import prefixed

P = ParamSpec("P")
T = TypeVar("T")

#: Seconds between two requests where Modal offers nothing to wait for, at the beginning and at most.
POLL_INTERVAL = 0.5
MAX_POLL_INTERVAL = 5.0
#: Seconds before the first retry, and at most before each further one. Each wait is twice the one before it, and a
#: random part is added, so that the runs of one ``Launcher.map`` do not all send their requests at the same moment.
FIRST_RETRY_WAIT = 0.5
MAX_RETRY_WAIT = 10.0
RETRY_JITTER = 0.5
#: Seconds of waiting after which its reason is reported, and at most between two reports. Each interval is twice the
#: one before it.
FIRST_REPORT_INTERVAL = 5.0
MAX_REPORT_INTERVAL = 60.0
#: Seconds between two reports on standard error, of whatever request.
PRINT_INTERVAL = 4.0
#: Seconds in which requests are repeated that Modal refuses for their number.
RATE_LIMIT_TIMEOUT = 1800.0

_is_own_retry: ContextVar[bool] = ContextVar("skyrl_modal_is_own_retry", default=False)


async def retry_transient(
    call: Callable[P, Awaitable[T]],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """Await a request, and repeat it after transient errors. Cancellation ends it at any time.

    There is no limit, but for requests that Modal refuses for their number. The reason for which it waits is reported,
    see ``report_waits``.

    Args:
        call: Makes the request.
        *args: Its arguments.
        **kwargs: Its keyword arguments.
    """
    wait = _ReportedWait()

    def is_retried(error: Exception) -> bool:
        return is_transient(error) and wait.may_continue(error)

    try:
        result = await _retry(is_retried, call, *args, **kwargs)
        wait.report_success()
        return result
    finally:
        wait.end()


async def retry_errors(
    errors: tuple[type[Exception], ...], call: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Await a request, and repeat it after the given errors without a limit. Nothing is reported."""
    return await _retry(lambda error: isinstance(error, errors), call, *args, **kwargs)


async def _retry(
    is_retried: Callable[[Exception], bool], call: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs
) -> T:
    def exclude_hooks(error: Exception) -> bool:
        _exclude_own_retries_from_hooks()
        return is_retried(error)

    caller = stamina.AsyncRetryingCaller(
        attempts=None, timeout=None, wait_initial=FIRST_RETRY_WAIT, wait_max=MAX_RETRY_WAIT, wait_jitter=RETRY_JITTER
    )
    token = _is_own_retry.set(True)
    try:
        return await caller(exclude_hooks, call, *args, **kwargs)
    finally:
        _is_own_retry.reset(token)


@contextmanager
def report_waits(report: Callable[[str], None]) -> Iterator[None]:
    """Pass the reasons for which requests of this context wait to a function, instead of printing them."""
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)


class _ReportedWait:
    """One request that is repeated: what is reported about it while it waits."""

    def __init__(self) -> None:
        self._error: Exception | None = None
        self._begin = 0.0
        self._refused_since: float | None = None
        self._reporting: asyncio.Task[None] | None = None
        self._is_reported = False

    def may_continue(self, error: Exception) -> bool:
        """Record an error. Return whether the request may be repeated after it."""
        now = time.monotonic()
        if self._reporting is None:
            self._begin = now
            self._reporting = asyncio.ensure_future(self._report_at_intervals())
        self._error = error
        if not isinstance(error, modal.exception.ResourceExhaustedError):
            self._refused_since = None
            return True
        self._refused_since = self._refused_since or now
        return now < self._refused_since + RATE_LIMIT_TIMEOUT

    async def _report_at_intervals(self) -> None:
        interval = FIRST_REPORT_INTERVAL
        while True:
            await asyncio.sleep(interval)
            interval = min(2 * interval, MAX_REPORT_INTERVAL)
            self._is_reported = True
            elapsed = time.monotonic() - self._begin
            reason = "" if self._error is None else f": {error_text(self._error)}"
            _report_wait(f"waiting for Modal since {elapsed:.0f} s{reason}; trying again")

    def report_success(self) -> None:
        """Report that the request was answered, if it was reported that it waited."""
        if self._is_reported:
            _report_wait(f"Modal has responded after {time.monotonic() - self._begin:.0f} s")

    def end(self) -> None:
        """Stop to report."""
        if self._reporting is not None:
            self._reporting.cancel()


class _WaitPrinter:
    """Prints reasons for waiting to standard error, at most once in some seconds for all requests of this process."""

    def __init__(self) -> None:
        self._printed_at = -math.inf

    def __call__(self, text: str) -> None:
        """Print a reason, if none was printed a moment ago."""
        now = time.monotonic()
        if now < self._printed_at + PRINT_INTERVAL:
            return
        self._printed_at = now
        with contextlib.suppress(OSError, ValueError):  # standard error is closed
            sys.stderr.write(prefixed(text))
            sys.stderr.flush()


_print_wait = _WaitPrinter()
#: What receives the reasons for waiting; None for standard error.
_report: ContextVar[Callable[[str], None] | None] = ContextVar("skyrl_modal_report_wait", default=None)


def _report_wait(text: str) -> None:
    (_report.get() or _print_wait)(text)


@functools.cache
def _exclude_own_retries_from_hooks() -> None:
    """Wrap stamina's hooks so that they ignore the retries of this module.

    By default stamina reports every retry to structlog if that is installed, which prints to standard output, and to
    ``logging`` otherwise, which prints to standard error. Standard output belongs to the run's command, and an outage
    is reported by the launcher's own messages. Retries of the application itself reach the hooks as before.
    """
    instrumentation.set_on_retry_hooks([_without_own_retries(hook) for hook in instrumentation.get_on_retry_hooks()])


def _without_own_retries(hook: RetryHook) -> RetryHook:
    def call_hook(details: RetryDetails) -> object:
        return None if _is_own_retry.get() else hook(details)

    return call_hook  # type: ignore[return-value]  # the protocol lists its two return types, this passes either on
