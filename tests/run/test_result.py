"""Tests of results."""

from __future__ import annotations

import pickle
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from skyrl_modal import CommandFailed, RunCancelled, RunLost, RunResult, RunState, RunTimeout
from skyrl_modal.errors import RunError
from skyrl_modal.protocol.job import Job, Limits
from skyrl_modal.protocol.result import RunResultRecord
from skyrl_modal.protocol.state import FailureCause, StopReason

JOB = Job(
    run_id="r1",
    command="true",
    workdir="/",
    run_folder="/data/r1",
    created_at="2026-01-01T00:00:00+00:00",
    limits=Limits(attempt_timeout=3600, total_timeout=86000, retries=1),
)
RECORD = RunResultRecord(
    run_id="r1",
    state=RunState.FAILED,
    returncode=3,
    attempts=2,
    started_at="2026-01-01T00:00:01+00:00",
    duration=7311.4,
    cause=FailureCause.COMMAND_FAILED,
    detail="detail",
)


def make_result(**changes: object) -> RunResult:
    """Return the result of a record with changes."""
    record = replace(RECORD, **changes)
    return RunResult.from_record(record, job=JOB, backend="local", log_path="/log", output_tail=b"one\ntwo\n")


def test_fields_of_a_result() -> None:
    """A result has the facts of its record."""
    result = make_result(stop_reason=StopReason.CANCELLED)

    assert (result.run_id, result.state, result.returncode, result.attempts) == ("r1", RunState.FAILED, 3, 2)
    assert (result.cause, result.stop_reason) == (FailureCause.COMMAND_FAILED, StopReason.CANCELLED)
    assert result.started_at == datetime(2026, 1, 1, 0, 0, 1, tzinfo=UTC)
    assert (result.log_tail, result.log_path, result.backend) == ("one\ntwo", "/log", "local")
    assert not result.succeeded


@pytest.mark.parametrize(
    ("state", "error"),
    [
        (RunState.FAILED, CommandFailed),
        (RunState.TIMED_OUT, RunTimeout),
        (RunState.CANCELLED, RunCancelled),
        (RunState.LOST, RunLost),
        (RunState.UNKNOWN, RunLost),
    ],
)
def test_state_decides_the_exception(state: RunState, error: type[RunError]) -> None:
    """check_returncode raises one exception for each state, with the facts of the run."""
    with pytest.raises(error) as caught:
        make_result(state=state).check_returncode()

    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.run_id, copy.detail, copy.log_tail) == ("r1", "detail", "one\ntwo")


def test_success_raises_nothing() -> None:
    """check_returncode does nothing for a run that succeeded."""
    make_result(state=RunState.SUCCEEDED, returncode=0, cause=None).check_returncode()


@pytest.mark.parametrize(
    ("cause", "seconds"), [(FailureCause.ATTEMPT_TIMEOUT, 3600), (FailureCause.TOTAL_TIMEOUT, 86000)]
)
def test_timeout_contains_the_exceeded_limit(cause: FailureCause, seconds: float) -> None:
    """The exception contains the limit, and not the duration of all attempts."""
    with pytest.raises(RunTimeout) as caught:
        make_result(state=RunState.TIMED_OUT, cause=cause, returncode=124).check_returncode()

    assert (caught.value.seconds, caught.value.returncode) == (seconds, 124)
