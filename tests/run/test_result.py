"""Tests of results."""

from __future__ import annotations

import pickle
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from skyrl_modal import CommandFailed, RunCancelled, RunLost, RunResult, RunState, RunTimeout
from skyrl_modal.errors import RunError
from skyrl_modal.protocol.result import OutputRecord, RunResultRecord
from skyrl_modal.protocol.state import FailureCause, StopReason

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
    return RunResult.from_record(record, backend="local", log_path="/log", output_tail=b"one\ntwo\n")


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


def test_timeout_contains_the_exceeded_limit() -> None:
    """The exception contains the limit, and not the duration of all attempts."""
    with pytest.raises(RunTimeout) as caught:
        make_result(state=RunState.TIMED_OUT, time_limit=3600.0, returncode=124).check_returncode()

    assert (caught.value.seconds, caught.value.returncode) == (3600.0, 124)


def test_detail_reports_what_was_not_stored() -> None:
    """An incomplete output.log and a failed commit are reported beside the cause of the failure, each one time."""
    output = OutputRecord(error="output.log ends after 5 bytes")

    assert make_result(output=output, volume_error="no commit").detail.splitlines() == [
        "detail",
        "output.log ends after 5 bytes",
        "no commit",
    ]
    assert make_result(volume_error="detail").detail == "detail"
