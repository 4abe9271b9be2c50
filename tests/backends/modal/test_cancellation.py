"""Tests of runs that are cancelled elsewhere: on Modal's dashboard, by another process, or by the end of their app."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from skyrl_modal import Launcher, RunState
from skyrl_modal.protocol.state import FailureCause, StopReason
from tests.support.loopback import LoopbackModal, texts

Make = Callable[..., Launcher]


def cancel_call(server: LoopbackModal) -> None:
    """Cancel the only call, as the dashboard does."""
    [call] = server.function_calls
    server.cancel(call.id)


def stop_app(server: LoopbackModal) -> None:
    """Stop the only app by the command of Modal's client."""
    command = [sys.executable, "-m", "modal", "app", "stop", server.apps[0].id, "--yes"]
    subprocess.run(command, env=os.environ | server.env(), check=True, capture_output=True)


#: The ways to cancel a run, and the texts of the error that its caller receives.
WAYS = pytest.mark.parametrize(
    ("cancel", "text"),
    [(cancel_call, texts.CANCELLED), (cancel_call, ""), (stop_app, texts.CANCELLED)],
    ids=["call", "call without a text", "app"],
)


@WAYS
def test_cancelled_before_the_start(
    server: LoopbackModal,
    launcher: Make,
    monkeypatch: pytest.MonkeyPatch,
    cancel: Callable[[LoopbackModal], None],
    text: str,
) -> None:
    """A run that is cancelled elsewhere before its container has started is cancelled, and not lost."""
    monkeypatch.setattr(texts, "CANCELLED", text)
    server.faults.slow_start(600)
    run = launcher(grace=1).submit("true")

    cancel(server)
    result = run.wait(60)

    assert (result.state, result.cause, result.returncode) == (RunState.CANCELLED, FailureCause.STOPPED, 130)
    assert result.stop_reason is StopReason.CANCELLED
    assert result.attempts == 0
    assert "cancelled from elsewhere" in result.detail


@pytest.mark.slow
@WAYS
def test_cancelled_while_the_command_runs(
    server: LoopbackModal,
    launcher: Make,
    monkeypatch: pytest.MonkeyPatch,
    cancel: Callable[[LoopbackModal], None],
    text: str,
) -> None:
    """A run that is cancelled elsewhere ends with its grace period; the end of its app is no preemption."""
    monkeypatch.setattr(texts, "CANCELLED", text)
    run = launcher(grace=5).submit("trap 'exit 9' INT; echo up; while :; do sleep 0.1; done")
    assert next(iter(run.logs(follow=True))) == "up"

    cancel(server)
    result = run.wait(60)

    assert (result.state, result.cause, result.returncode) == (RunState.CANCELLED, FailureCause.STOPPED, 9)
    assert result.stop_reason is StopReason.CANCELLED
    assert result.attempts == 1


@pytest.mark.slow
@pytest.mark.parametrize("cancel", [cancel_call, stop_app])
def test_owner_of_a_run_that_is_cancelled(
    server: LoopbackModal, launcher: Make, cancel: Callable[[LoopbackModal], None]
) -> None:
    """The process that follows its own run returns the result, also if the run is cancelled before its start."""
    server.faults.slow_start(600)

    def cancel_when_submitted() -> None:
        server.wait_for_call("FunctionMap")
        server.wait_until(lambda: server.plane.calls.calls)
        cancel(server)

    thread = threading.Thread(target=cancel_when_submitted)
    thread.start()
    result = launcher(grace=1).run("true", quiet=True)
    thread.join()

    assert (result.state, result.returncode) == (RunState.CANCELLED, 130)
