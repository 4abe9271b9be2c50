"""How an attempt is stopped, and what its end means."""

from __future__ import annotations

import signal

import pytest

from skyrl_modal.container.command_attempt import Outcome, StopStep, stop_sequence
from skyrl_modal.container.failures import Failure
from skyrl_modal.protocol.state import FailureCause, NextStart, RunState, StopReason


def test_stop_request_sends_three_signals() -> None:
    """A stopped run gets SIGINT, then SIGTERM in the middle of the grace period, then SIGKILL at its end."""
    assert stop_sequence(signal.SIGINT, 6) == [
        StopStep(signal.SIGINT, 3),
        StopStep(signal.SIGTERM, 3),
        StopStep(signal.SIGKILL, None),
    ]


def test_timeout_sends_two_signals() -> None:
    """A run that exceeds a limit gets SIGTERM, and SIGKILL at the end of the grace period."""
    assert stop_sequence(signal.SIGTERM, 6) == [StopStep(signal.SIGTERM, 6), StopStep(signal.SIGKILL, None)]


def test_preemption_continues_the_same_attempt() -> None:
    """A container that ends is followed by another one, which starts the same attempt again."""
    stopped = Outcome.of_stop(StopReason.CONTAINER_ENDING)

    assert stopped.cause is FailureCause.PREEMPTED
    assert stopped.next_start is NextStart.SAME_ATTEMPT


#: Reasons whose outcome is another one.
OTHERS = (StopReason.CONTAINER_ENDING, StopReason.OVER_BUDGET)


def test_budget_ends_the_run() -> None:
    """A run whose cost has reached its budget has the exit code of a limit, whatever the command exits with."""
    stopped = Outcome.of_stop(StopReason.OVER_BUDGET, 143)

    assert (stopped.state, stopped.cause, stopped.returncode) == (RunState.OVER_BUDGET, FailureCause.OVER_BUDGET, 124)
    assert stopped.next_start is NextStart.NONE


@pytest.mark.parametrize("reason", [reason for reason in StopReason if reason not in OTHERS])
def test_other_stops_end_the_run(reason: StopReason) -> None:
    """A run that was stopped for another reason is not continued, and has the exit code of SIGINT."""
    stopped = Outcome.of_stop(reason)

    cause = FailureCause.LEASE_EXPIRED if reason is StopReason.LEASE_EXPIRED else FailureCause.STOPPED
    assert (stopped.state, stopped.cause, stopped.returncode) == (RunState.CANCELLED, cause, 130)
    assert (stopped.stop_reason, stopped.next_start) == (reason, NextStart.NONE)


def test_outcome_of_a_failure() -> None:
    """The cause and the rank of a failure are those of the outcome, whose detail contains the log tail."""
    failed = Outcome.of_failure(Failure(FailureCause.RAY_EXITED, "Ray exited", "  last line", rank=1))

    assert (failed.cause, failed.failed_rank, failed.returncode) == (FailureCause.RAY_EXITED, 1, 125)
    assert failed.detail == "Ray exited:\n  last line"
