"""Tests of retries after transient errors, without a server."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Iterator

import modal.exception
import pytest
import stamina
from stamina import instrumentation

from skyrl_modal.backends.modal import retry
from skyrl_modal.backends.modal.retry import retry_transient


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry without waiting."""
    monkeypatch.setattr(retry, "MAX_RETRY_WAIT", 0.0)


@pytest.fixture
def default_hooks() -> Iterator[None]:
    """Start with stamina's default hooks, as in a new process."""
    instrumentation.set_on_retry_hooks(None)
    retry._exclude_own_retries_from_hooks.cache_clear()
    yield
    instrumentation.set_on_retry_hooks(None)
    retry._exclude_own_retries_from_hooks.cache_clear()


class Request:
    """A request that fails with the given errors, then succeeds."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def send(self, value: str) -> str:
        """Return the value, or raise the next error."""
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return value


@pytest.mark.usefixtures("no_waits")
def test_transient_errors_are_retried() -> None:
    """A request is repeated after each transient error, and its arguments are passed each time."""
    request = Request(
        *[modal.exception.ServiceError("unavailable")] * 20, OSError(errno.EHOSTUNREACH, "no route to host")
    )

    assert asyncio.run(retry_transient(request.send, "value")) == "value"
    assert request.calls == 22


@pytest.mark.usefixtures("no_waits")
@pytest.mark.parametrize(
    "error",
    [
        modal.exception.NotFoundError("no such volume"),
        modal.exception.ResourceExhaustedError("Workspace x has exceeded its spend limit"),
        modal.exception.ConflictError("workspace x is disabled"),
        OSError(errno.ENOSPC, "No space left on device"),
        PermissionError("a file of this machine"),
    ],
)
def test_other_errors_are_not_retried(error: Exception) -> None:
    """An error that does not pass is raised at the first time: also a spend limit, and one of a file."""
    request = Request(error)

    with pytest.raises(type(error)):
        asyncio.run(retry_transient(request.send, "value"))
    assert request.calls == 1


@pytest.mark.usefixtures("no_waits")
def test_rate_limit_is_waited_for_with_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that Modal refuses for their number are repeated, and the error is raised after a time."""
    errors = [modal.exception.ResourceExhaustedError("rate limit exceeded")] * 1000
    assert asyncio.run(retry_transient(Request(*errors[:20]).send, "value")) == "value"

    monkeypatch.setattr(retry, "RATE_LIMIT_TIMEOUT", 0.0)
    with pytest.raises(modal.exception.ResourceExhaustedError):
        asyncio.run(retry_transient(Request(*errors).send, "value"))


def test_reason_for_waiting_is_reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A request that waits reports the reason and the elapsed time, on standard error if nothing else is defined."""
    monkeypatch.setattr(retry, "FIRST_REPORT_INTERVAL", 0.01)
    monkeypatch.setattr(retry, "PRINT_INTERVAL", 0.0)
    reports: list[str] = []

    async def wait() -> None:
        await retry_transient(Request(modal.exception.ServiceError("unavailable")).send, "value")

    asyncio.run(wait())
    with retry.report_waits(reports.append):
        asyncio.run(wait())

    for lines in (capsys.readouterr().err.splitlines(), reports):
        assert "waiting for Modal since 0 s: unavailable; trying again" in lines[0]
        assert "Modal has responded after" in lines[-1]


def test_cancellation_ends_retries() -> None:
    """A task that waits before a retry can be cancelled."""

    async def cancel() -> None:
        request = Request(*[modal.exception.ServiceError("unavailable")] * 1000)
        task = asyncio.ensure_future(retry_transient(request.send, "value"))
        while not request.calls:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 10)

    asyncio.run(cancel())


@pytest.mark.usefixtures("no_waits", "default_hooks")
def test_retries_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Retries of this package reach none of the hooks that print; retries of the application still do."""
    asyncio.run(retry_transient(Request(ConnectionResetError()).send, "value"))
    assert caplog.records == []

    caller = stamina.AsyncRetryingCaller(wait_initial=0, wait_jitter=0)
    asyncio.run(caller(OSError, Request(OSError()).send, "value"))
    assert [record.name for record in caplog.records if record.levelno >= logging.WARNING] == ["stamina"]
