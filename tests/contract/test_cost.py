"""Tests of cost and budget, on every backend."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from skyrl_modal import Launcher, Run, RunState
from skyrl_modal.protocol.state import FailureCause, StopReason
from tests.contract.conftest import LOCAL_FIRST

Make = Callable[..., Launcher]
#: US dollars per hour and node: one per second.
RATE = 3600.0


@LOCAL_FIRST
def test_cost_grows_while_a_run_continues(launcher: Make) -> None:
    """The cost of a run is known while it continues, grows with the time, and is final at its end."""
    run = launcher(rate=RATE).submit("echo up; sleep 3; exit 3")
    for line in run.logs(follow=True):
        if line == "up":
            break
    begin, first = time.monotonic(), run.cost
    assert first is not None
    result = run.wait(60)
    elapsed = time.monotonic() - begin

    assert result.cost is not None
    assert 2.5 <= result.cost - first <= elapsed + 1
    assert result.container_seconds == pytest.approx(result.cost, rel=0.001)
    assert result.cost >= result.duration - 0.1
    assert Run.attach(run.id).cost == result.cost


def test_budget_stops_a_run(launcher: Make, capfd: pytest.CaptureFixture[str]) -> None:
    """At the cap, the run is stopped with its grace period, and no further attempt is made."""
    command = "trap 'echo saved; exit 0' INT; echo up; while :; do sleep 0.1; done"
    result = launcher(rate=RATE, budget=6, retries=3).run(command)

    assert (result.state, result.returncode) == (RunState.OVER_BUDGET, 124)
    assert (result.cause, result.stop_reason) == (FailureCause.OVER_BUDGET, StopReason.OVER_BUDGET)
    assert result.attempts == 1
    assert result.cost is not None
    assert 6 <= result.cost < 6 + 5
    assert result.diagnosis is not None
    assert result.diagnosis.code == "over-budget"
    printed = capfd.readouterr()
    assert printed.out == "up\nsaved\n"
    assert "the cost has reached the budget" in printed.err
    assert f"exit code 124 after {result.duration:.1f} s, cost ${result.cost:.2f}" in printed.err


@LOCAL_FIRST
def test_budget_holds_without_the_caller(launcher: Make) -> None:
    """A command that ignores signals is killed at the end of its grace period: the cap is exceeded by that at most."""
    run = launcher(rate=RATE, budget=5, grace=2).submit("trap '' INT TERM; echo up; while :; do sleep 0.1; done")
    result = Run.attach(run.id).wait(60)

    assert (result.state, result.returncode) == (RunState.OVER_BUDGET, 124)
    assert result.cost is not None
    assert 7 <= result.cost < 5 + 2 + 5


@LOCAL_FIRST
def test_budget_includes_all_attempts(launcher: Make) -> None:
    """The time of earlier attempts counts."""
    result = launcher(rate=RATE, budget=5, retries=10, grace=1).run("sleep 1; exit 7", quiet=True)

    assert (result.state, result.returncode) == (RunState.OVER_BUDGET, 124)
    assert 2 <= result.attempts <= 6
    assert result.cost is not None
    assert 5 <= result.cost < 5 + 1 + 5


def test_cost_of_a_cancelled_run(launcher: Make) -> None:
    """A run that was cancelled has a cost."""
    run = launcher(rate=RATE).submit("echo up; sleep 600")
    for line in run.logs(follow=True):
        if line == "up":
            break
    threading.Timer(0.0, run.cancel).start()

    assert (run.wait(60).cost or 0) > 0.05
