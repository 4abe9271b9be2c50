"""Which attempts follow after failed ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_modal.container.command_attempt import Outcome
from skyrl_modal.container.retries import Retries, with_attempt, with_start, without_progress_outcome
from skyrl_modal.protocol.job import Job, Limits
from skyrl_modal.protocol.state import FailureCause, NextStart, RunState
from skyrl_modal.protocol.status import AttemptHistory
from tests.container.records import make_job


def decide(job: Job, state: RunState, attempts: int, *, returncode: int = 1, is_late: bool = False) -> Outcome:
    """Return the outcome of an attempt of a run that does not continue from checkpoints."""
    outcome = Outcome(state=state, returncode=returncode)
    return Retries(job, AttemptHistory()).decide(outcome, attempts, is_late=is_late)


@pytest.mark.parametrize("state", [RunState.FAILED, RunState.TIMED_OUT])
def test_failed_attempts_are_retried(state: RunState, tmp_path: Path) -> None:
    """An attempt that failed or timed out is followed by another one as long as retries are left."""
    job = make_job(tmp_path, limits=Limits(retries=1))

    assert decide(job, state, 1).next_start is NextStart.NEXT_ATTEMPT
    assert decide(job, state, 2) == Outcome(state=state, returncode=1)


@pytest.mark.parametrize("state", [RunState.SUCCEEDED, RunState.CANCELLED])
def test_other_states_are_not_retried(state: RunState, tmp_path: Path) -> None:
    """A run that succeeded or was cancelled is not started again."""
    assert decide(make_job(tmp_path, limits=Limits(retries=9)), state, 1).next_start is NextStart.NONE


def test_retry_exit_codes(tmp_path: Path) -> None:
    """Only the given exit codes are retried."""
    job = make_job(tmp_path, limits=Limits(retries=9, retry_exit_codes=(75,)))

    assert decide(job, RunState.FAILED, 1, returncode=75).next_start is NextStart.NEXT_ATTEMPT
    assert decide(job, RunState.FAILED, 1, returncode=1).next_start is NextStart.NONE


def test_no_retry_after_the_total_timeout(tmp_path: Path) -> None:
    """No attempt is started after the limit of all attempts together."""
    job = make_job(tmp_path, limits=Limits(retries=9))

    assert decide(job, RunState.FAILED, 1, is_late=True).next_start is NextStart.NONE


@pytest.mark.parametrize(
    ("start", "reached", "expected"),
    [
        (None, None, AttemptHistory(counted=1, without_progress=1)),
        (None, 0, AttemptHistory(best_step=0)),
        (None, 5, AttemptHistory(best_step=5)),
        (20, 20, AttemptHistory(counted=1, best_step=20, without_progress=1)),
        (20, 21, AttemptHistory(best_step=21)),
        (20, None, AttemptHistory(counted=1, best_step=20, without_progress=1)),
    ],
)
def test_only_a_new_step_is_progress(start: int | None, reached: int | None, expected: AttemptHistory) -> None:
    """An attempt uses no retry if it reached a step greater than all before, and than the one that it began from."""
    assert with_attempt(with_start(AttemptHistory(), start), reached) == expected


@given(st.lists(st.none() | st.integers(0, 50), max_size=30))
def test_history_counts_every_attempt_once(steps: list[int | None]) -> None:
    """Each attempt either raises the greatest step or counts, and the last ones without progress are counted apart."""
    history, best, counted, last = AttemptHistory(), -1, 0, 0
    for step in steps:
        history = with_attempt(history, step)
        is_new = step is not None and step > best
        best, counted, last = (max(best, step or 0), counted, 0) if is_new else (best, counted + 1, last + 1)

    assert history == AttemptHistory(counted=counted, best_step=None if best < 0 else best, without_progress=last)


def test_outcome_without_progress_has_the_last_exit_code() -> None:
    """A run that ends since it makes no progress has failed, with the code and the reason of its last attempt."""
    last = Outcome(
        state=RunState.TIMED_OUT, returncode=124, cause=FailureCause.STALLED, detail="no output", time_limit=9
    )
    outcome = without_progress_outcome(last, AttemptHistory(counted=2, best_step=7, without_progress=2))

    assert (outcome.state, outcome.cause, outcome.returncode) == (RunState.FAILED, FailureCause.NO_PROGRESS, 124)
    assert "the greatest step is 7" in outcome.detail
    assert "no output" in outcome.detail
