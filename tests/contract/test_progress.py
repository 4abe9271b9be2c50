"""Attempts of runs with ``resume="auto"`` are counted by their progress."""

from __future__ import annotations

from pathlib import Path

import pytest

from skyrl_modal import RunResult, RunState
from skyrl_modal.protocol.state import FailureCause
from tests.conftest import MakeLauncher
from tests.contract.conftest import LOCAL_FIRST
from tests.support.small_trainer import SCRIPT, add_to_checkout


@pytest.fixture(autouse=True)
def trainer_checkout(checkout: Path) -> None:
    """Add a small trainer, which writes a checkpoint every two steps, of six."""
    add_to_checkout(checkout)


def run_with_exits(launcher: MakeLauncher, exit_at: str, **fields: object) -> RunResult:
    """Run the trainer, whose attempts exit with code 9 after these steps."""
    return launcher(**{"resume": "auto", "env": {"EXIT_AT": exit_at}, **fields}).run(f"bash {SCRIPT}", quiet=True)


def test_progress_uses_no_retry(launcher: MakeLauncher) -> None:
    """Attempts that reach new steps are repeated until the training is complete, without retries."""
    result = run_with_exits(launcher, "1 3 5", retries=0)

    assert (result.state, result.returncode, result.attempts) == (RunState.SUCCEEDED, 0, 4)


def test_two_attempts_without_a_new_step_end_the_run(launcher: MakeLauncher) -> None:
    """The run ends although retries are left, with the exit code of the last attempt."""
    result = run_with_exits(launcher, "3 3 3 3 3 3", retries=5)

    assert (result.state, result.returncode, result.attempts) == (RunState.FAILED, 9, 3)
    assert result.cause is FailureCause.NO_PROGRESS
    assert "2 attempts one after another reached no new step (the greatest step is 3)" in result.detail


@LOCAL_FIRST
def test_no_retry_is_left_for_an_attempt_without_a_new_step(launcher: MakeLauncher) -> None:
    """Such an attempt needs a retry. Without one, the run ends with the attempt's own cause."""
    result = run_with_exits(launcher, "3 3", retries=0)

    assert (result.state, result.returncode, result.attempts) == (RunState.FAILED, 9, 2)
    assert result.cause is FailureCause.COMMAND_FAILED


@LOCAL_FIRST
def test_one_attempt_without_a_new_step_uses_one_retry(launcher: MakeLauncher) -> None:
    """An attempt without a new step between attempts with one does not end the run, if a retry is left for it."""
    result = run_with_exits(launcher, "3 3 4 5", retries=1)

    assert (result.state, result.attempts) == (RunState.SUCCEEDED, 5)


@LOCAL_FIRST
def test_failure_before_the_first_step_is_not_repeated_for_ever(launcher: MakeLauncher) -> None:
    """A command that never reaches a step, for example since an argument is wrong, is started twice."""
    result = run_with_exits(launcher, "0 0 0 0", retries=5)

    assert (result.returncode, result.attempts, result.cause) == (9, 2, FailureCause.NO_PROGRESS)
    assert "no step was reached" in result.detail


@LOCAL_FIRST
def test_a_step_that_an_earlier_run_reached_is_not_new(launcher: MakeLauncher) -> None:
    """The step that the first attempt continues from is no progress of this run."""
    run_with_exits(launcher, "5", retries=0, resume=None)
    result = run_with_exits(launcher, "0 0 0", retries=5)

    assert (result.attempts, result.cause) == (2, FailureCause.NO_PROGRESS)
    assert "the greatest step is 4" in result.detail


@LOCAL_FIRST
def test_without_resume_each_failure_uses_a_retry(launcher: MakeLauncher) -> None:
    """Progress does not count without ``resume``: the attempts begin at the first step."""
    result = run_with_exits(launcher, "3 4 5", retries=1, resume=None)

    assert (result.state, result.attempts, result.cause) == (RunState.FAILED, 2, FailureCause.COMMAND_FAILED)
