"""How a container continues a run that an earlier container has started."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from skyrl_modal.container.previous_container import Continue, Finished, Lost, PreviousContainer
from skyrl_modal.protocol.job import Job, Limits
from skyrl_modal.protocol.result import OutputRecord
from skyrl_modal.protocol.run_folder import RESULT_FILE, STATUS_FILE, RunFolder
from skyrl_modal.protocol.state import FailureCause, NextStart, RunState, StopReason
from skyrl_modal.protocol.status import StatusRecord
from tests.container.records import make_job, make_result

PREEMPTED = make_result(
    RunState.CANCELLED,
    cause=FailureCause.PREEMPTED,
    stop_reason=StopReason.CONTAINER_ENDING,
    next_start=NextStart.SAME_ATTEMPT,
)
LOST_RANK = make_result(
    RunState.FAILED,
    returncode=143,
    cause=FailureCause.RANK_LOST,
    failed_rank=1,
    next_start=NextStart.NEXT_ATTEMPT,
)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return make_job(tmp_path, limits=Limits(retries=1))


@pytest.fixture
def folder(job: Job) -> RunFolder:
    return RunFolder(job.run_folder)


@pytest.fixture
def messages() -> list[str]:
    return []


@pytest.fixture
def previous(job: Job, messages: list[str]) -> Callable[[], PreviousContainer]:
    """Read what the earlier container has left."""
    return lambda: PreviousContainer(job, messages.append)


def begin_attempt(folder: RunFolder, number: int) -> None:
    folder.write_status(StatusRecord(state=RunState.RUNNING, attempt=number))


def test_first_container_starts(previous: Callable[[], PreviousContainer], messages: list[str]) -> None:
    """Without records, the first attempt is started, and nothing is reported."""
    assert previous().decide() == Continue()
    assert not previous().is_finished
    assert messages == []


def test_container_that_died_before_an_attempt(previous: Callable[[], PreviousContainer], folder: RunFolder) -> None:
    """A container that died before the command started costs no attempt."""
    folder.write_status(StatusRecord(state=RunState.PREPARING))

    assert previous().decide() == Continue()


def test_finished_run_is_not_started_again(previous: Callable[[], PreviousContainer], folder: RunFolder) -> None:
    """The result of a run that has ended is returned, whatever its state."""
    begin_attempt(folder, 1)
    result = make_result(RunState.CANCELLED, cause=FailureCause.STOPPED, stop_reason=StopReason.CANCELLED)
    folder.write_result(result)

    assert previous().decide() == Finished(result)
    assert previous().is_finished


def test_preempted_attempt_does_not_count(previous: Callable[[], PreviousContainer], folder: RunFolder) -> None:
    """A preempted attempt is started again with the same number."""
    begin_attempt(folder, 2)
    folder.write_result(PREEMPTED)

    decision = previous().decide()

    assert isinstance(decision, Continue)
    assert decision.attempts == 1
    assert not previous().is_finished


def test_preemption_with_an_incomplete_log(previous: Callable[[], PreviousContainer], folder: RunFolder) -> None:
    """A preempted run is continued also if its output.log could not be written."""
    begin_attempt(folder, 1)
    error = "output.log ends after 5 bytes: No space left on device"
    folder.write_result(replace(PREEMPTED, detail=error, output=OutputRecord(bytes=5, error=error)))

    assert isinstance(previous().decide(), Continue)


def test_preemption_with_a_failed_commit(previous: Callable[[], PreviousContainer], folder: RunFolder) -> None:
    """A preempted run is continued also if a volume could not be committed."""
    begin_attempt(folder, 1)
    folder.write_result(replace(PREEMPTED, volume_error="a volume could not be committed: timeout"))

    assert isinstance(previous().decide(), Continue)


def test_lost_rank_begins_the_next_attempt(previous: Callable[[], PreviousContainer], folder: RunFolder) -> None:
    """An attempt that failed with a rank counts, and the message names its exit code and its cause."""
    begin_attempt(folder, 1)
    folder.write_result(LOST_RANK)

    assert previous().decide() == Continue(1, "attempt 1 ended with exit code 143 (rank_lost, rank 1); starting again")


def test_container_that_died_is_retried(previous: Callable[[], PreviousContainer], folder: RunFolder) -> None:
    """An attempt without a result counts as failed, and another one follows if retries are left."""
    begin_attempt(folder, 1)

    decision = previous().decide()

    assert isinstance(decision, Continue)
    assert decision.attempts == 1


def test_container_that_died_in_the_last_attempt(
    previous: Callable[[], PreviousContainer], folder: RunFolder, job: Job
) -> None:
    """The run is lost if its container died and no retry is left."""
    folder.write_job(job)
    begin_attempt(folder, 2)

    decision = previous().decide()

    assert isinstance(decision, Lost)
    assert (decision.result.state, decision.result.cause) == (RunState.LOST, FailureCause.CONTAINER_DIED)
    assert (decision.result.returncode, decision.result.attempts) == (125, 2)


@pytest.mark.parametrize("content", ["", "{", '{"schema_version": 99}', "[]"])
def test_unreadable_result_counts_as_absent(
    previous: Callable[[], PreviousContainer], folder: RunFolder, messages: list[str], content: str
) -> None:
    """A damaged or newer result does not stop the run: its attempt counts as failed, and a warning is reported."""
    begin_attempt(folder, 1)
    (folder.path / RESULT_FILE).write_text(content)

    assert isinstance(previous().decide(), Continue)
    assert messages
    assert messages[0].startswith("warning: ")


def test_unreadable_status_counts_as_absent(
    previous: Callable[[], PreviousContainer], folder: RunFolder, messages: list[str]
) -> None:
    """A damaged status does not stop the run."""
    (folder.path / STATUS_FILE).write_text("{")

    assert previous().decide() == Continue()
    assert len(messages) == 1


@pytest.mark.parametrize("attempts", [0, 1])
def test_attempt_that_was_not_started_is_pending(
    previous: Callable[[], PreviousContainer], folder: RunFolder, attempts: int
) -> None:
    """A container that was preempted before its attempt began does not change the number of attempts."""
    begin_attempt(folder, attempts)
    folder.write_result(replace(PREEMPTED, next_start=NextStart.PENDING_ATTEMPT))

    decision = previous().decide()

    assert isinstance(decision, Continue)
    assert decision.attempts == attempts
    assert decision.message
    assert not previous().was_replaced


@pytest.mark.parametrize("attempts", [0, 1])
def test_replaced_container_leaves_no_trace(
    previous: Callable[[], PreviousContainer], folder: RunFolder, attempts: int
) -> None:
    """A container whose GPUs did not work does not change the number of attempts, and adds nothing to the output."""
    begin_attempt(folder, attempts)
    broken = replace(LOST_RANK, cause=FailureCause.GPUS_MISSING, next_start=NextStart.PENDING_ATTEMPT)
    folder.write_result(broken)

    assert previous().decide() == Continue(attempts)
    assert previous().was_replaced
    assert not previous().is_finished


def test_unknown_next_start_ends_the_run(previous: Callable[[], PreviousContainer], folder: RunFolder) -> None:
    """A value of a later version is not taken for a request to continue."""
    folder.write_result(replace(PREEMPTED, next_start=NextStart.UNKNOWN))

    assert previous().is_finished
    assert isinstance(previous().decide(), Finished)


def test_old_result_is_removed(previous: Callable[[], PreviousContainer], folder: RunFolder) -> None:
    """The result of a run that continues is removed, so that no reader considers the run ended."""
    folder.write_result(PREEMPTED)

    previous().remove_result()

    assert folder.read_result() is None
