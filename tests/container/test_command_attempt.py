"""How an attempt is stopped, and what its end means."""

from __future__ import annotations

import signal

import pytest

from skyrl_modal.container.command_attempt import Outcome, StopStep, stop_sequence
from skyrl_modal.container.failures import Failure
from skyrl_modal.container.supervisor import may_retry
from skyrl_modal.protocol.job import Limits
from skyrl_modal.protocol.state import FailureCause, NextStart, RunState, StopReason


def outcome(state: RunState, returncode: int = 1) -> Outcome:
    return Outcome(state=state, returncode=returncode)


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


@pytest.mark.parametrize("reason", [reason for reason in StopReason if reason is not StopReason.CONTAINER_ENDING])
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


@pytest.mark.parametrize("state", [RunState.FAILED, RunState.TIMED_OUT])
def test_failed_attempts_are_retried(state: RunState) -> None:
    """An attempt that failed or timed out is followed by another one as long as retries are left."""
    limits = Limits(retries=1)

    assert may_retry(limits, outcome(state), 1, is_total_timeout_exceeded=False)
    assert not may_retry(limits, outcome(state), 2, is_total_timeout_exceeded=False)


@pytest.mark.parametrize("state", [RunState.SUCCEEDED, RunState.CANCELLED])
def test_other_states_are_not_retried(state: RunState) -> None:
    """A run that succeeded or was cancelled is not started again."""
    assert not may_retry(Limits(retries=9), outcome(state), 1, is_total_timeout_exceeded=False)


def test_retry_exit_codes() -> None:
    """Only the given exit codes are retried."""
    limits = Limits(retries=9, retry_exit_codes=(75,))

    assert may_retry(limits, outcome(RunState.FAILED, 75), 1, is_total_timeout_exceeded=False)
    assert not may_retry(limits, outcome(RunState.FAILED, 1), 1, is_total_timeout_exceeded=False)


def test_no_retry_after_the_total_timeout() -> None:
    """No attempt is started after the limit of all attempts together."""
    assert not may_retry(Limits(retries=9), outcome(RunState.FAILED), 1, is_total_timeout_exceeded=True)
