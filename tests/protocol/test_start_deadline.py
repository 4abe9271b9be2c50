"""Tests of ``protocol.start_deadline``: the clocks of two machines may differ."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from skyrl_modal.protocol.job import Job, Limits
from skyrl_modal.protocol.result import RunResultRecord
from skyrl_modal.protocol.start_deadline import seconds_to_start, start_deadline_result, with_submission_time
from skyrl_modal.protocol.state import FailureCause, RunState, StopReason


def make_job(age: float, deadline: float | None) -> Job:
    """Return a job that was submitted some seconds ago by its caller's clock."""
    submitted_at = datetime.now(UTC) - timedelta(seconds=age)
    return Job(
        run_id="r", command="true", workdir="/", run_folder="/r", created_at="2001-01-01T00:00:00+00:00",
        submitted_at=submitted_at.isoformat(), limits=Limits(start_deadline=deadline),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("age", "deadline", "seconds"),
    [
        (0, 100, 100),  # the tolerance does not extend the time of a container that starts immediately
        (5, 100, 100),  # the caller's clock may be 5 s behind
        (60, 100, 50),
        (105, 100, 5),
        (111, 100, -1),
        (-86400, 100, 100),  # the caller's clock is a day ahead
        (3590, 3600, 20),  # the tolerance is 10 s at most
        (3615, 3600, -5),
    ],
)
def test_seconds_to_start(age: float, deadline: float, seconds: float) -> None:
    """The remaining time allows a small difference of the clocks, and is never longer than the deadline."""
    remaining = seconds_to_start(make_job(age, deadline))

    assert remaining is not None
    assert remaining == pytest.approx(seconds, abs=2)


def test_no_deadline() -> None:
    """A run without a deadline may start at any time."""
    assert seconds_to_start(make_job(10**9, None)) is None


def test_time_of_creation_replaces_the_submission() -> None:
    """A job of an older record has no time of submission; its time of creation is used."""
    remaining = seconds_to_start(replace(make_job(0, 100), submitted_at=None))

    assert remaining is not None
    assert remaining < 0


def test_damaged_time_of_submission_is_ignored() -> None:
    """A stored time that is damaged changes nothing."""
    job = make_job(7, 100)

    assert with_submission_time(job, "yesterday") == job
    assert with_submission_time(job, 3) == job
    assert with_submission_time(job, "2002-02-02T00:00:00+00:00").submitted_at == "2002-02-02T00:00:00+00:00"


def test_result_keeps_what_the_run_left() -> None:
    """The result of a run that was cancelled for its deadline has the cause, and the facts of its record."""
    job = make_job(100, 10)
    record = RunResultRecord.without_record(
        job,
        state=RunState.CANCELLED,
        returncode=130,
        cause=FailureCause.STOPPED,
        stop_reason=StopReason.CANCELLED,
        detail="cancelled",
        started_at=datetime(2020, 1, 1, tzinfo=UTC),
    )

    result = start_deadline_result(job, record)

    assert (result.state, result.returncode, result.cause) == (RunState.FAILED, 125, FailureCause.START_DEADLINE)
    assert (result.stop_reason, result.started_at) == (None, record.started_at)
    assert "within 10 s" in result.detail
