"""The limit on the time until a run's command starts: ``Limits.start_deadline``.

It counts from the submission of the run to its backend: building the image and uploading files do not count, and
neither does the time that a command of ``Launcher.map`` waits for another one. The wait for a container and the start
of Ray count.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

from skyrl_modal.dataclass import replace
from skyrl_modal.protocol.exit_codes import LAUNCHER_FAILED
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.result import RunResultRecord
from skyrl_modal.protocol.state import FailureCause, RunState

#: How much the clocks of two machines may differ: this fraction of the deadline, and seconds, at most.
CLOCK_TOLERANCE_FRACTION = 0.1
MAX_CLOCK_TOLERANCE = 10.0


def start_deadline_text(seconds: float) -> str:
    """Return the description of a start that took too long.

    Example:
        >>> start_deadline_text(600)
        'the command did not start within 600 s (start_deadline)'
    """
    return f"the command did not start within {seconds:,.10g} s (start_deadline)"


def submission_time(job: Job) -> float:
    """Return when a run was submitted, in seconds since the epoch by its caller's clock.

    Example:
        >>> job = Job(run_id="r", command="", workdir="", run_folder="", created_at="1970-01-01T00:01:00+00:00")
        >>> submission_time(job), submission_time(replace(job, submitted_at="1970-01-01T00:02:00+00:00"))
        (60.0, 120.0)
    """
    return datetime.fromisoformat(job.submitted_at or job.created_at).timestamp()


def with_submission_time(job: Job, submitted_at: object = None) -> Job:
    """Return a job with the time of its submission: now, or a stored time, which is ignored if it is damaged."""
    if submitted_at is None:
        return replace(job, submitted_at=datetime.now(UTC).isoformat())
    try:
        datetime.fromisoformat(str(submitted_at))
    except ValueError:
        return job
    return replace(job, submitted_at=str(submitted_at))


def seconds_to_start(job: Job) -> float | None:
    """Return the seconds that remain on another machine than the caller's; None for a run without a deadline.

    If the caller's clock is wrong, a run that Modal starts immediately should not fail, so that the result is at most
    the whole deadline, and a small difference of the clocks is allowed.
    """
    deadline = job.limits.start_deadline
    if deadline is None:
        return None
    tolerance = min(MAX_CLOCK_TOLERANCE, CLOCK_TOLERANCE_FRACTION * deadline)
    return min(deadline, deadline + tolerance - (time.time() - submission_time(job)))


def start_deadline_result(job: Job, record: RunResultRecord | None = None) -> RunResultRecord:
    """Return the result of a run that did not start in time.

    Args:
        job: The run, which has a deadline.
        record: What the run left; None for nothing.
    """
    detail = start_deadline_text(job.limits.start_deadline or 0.0)
    state, cause = RunState.FAILED, FailureCause.START_DEADLINE
    if record is None:
        return RunResultRecord.without_record(job, state=state, returncode=LAUNCHER_FAILED, cause=cause, detail=detail)
    return replace(
        record, state=state, returncode=LAUNCHER_FAILED, cause=cause, detail=detail, stop_reason=None, time_limit=None
    )
