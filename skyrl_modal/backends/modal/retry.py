"""Retries of requests to Modal that failed for a reason that passes."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

import stamina
from stamina import instrumentation
from stamina.instrumentation import RetryDetails, RetryHook

from skyrl_modal.backends.modal.errors import TRANSIENT_ERRORS

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

_is_own_retry: ContextVar[bool] = ContextVar("skyrl_modal_is_own_retry", default=False)


async def retry_transient(
    call: Callable[P, Awaitable[T]],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """Await a request, and repeat it after transient errors without a limit. Cancellation ends it at any time.

    Args:
        call: Makes the request.
        *args: Its arguments.
        **kwargs: Its keyword arguments.
    """
    return await retry_errors(TRANSIENT_ERRORS, call, *args, **kwargs)


async def retry_errors(
    errors: tuple[type[Exception], ...], call: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Like ``retry_transient``, after the given errors."""

    def is_retried(error: Exception) -> bool:
        _exclude_own_retries_from_hooks()
        return isinstance(error, errors)

    caller = stamina.AsyncRetryingCaller(
        attempts=None, timeout=None, wait_initial=FIRST_RETRY_WAIT, wait_max=MAX_RETRY_WAIT, wait_jitter=RETRY_JITTER
    )
    token = _is_own_retry.set(True)
    try:
        return await caller(is_retried, call, *args, **kwargs)
    finally:
        _is_own_retry.reset(token)


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
