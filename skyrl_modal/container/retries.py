"""Whether a further attempt follows after one that has failed.

Without ``resume``, each failed attempt uses a retry. With it, an attempt that reached a new training step uses none,
since the next one continues from there; two attempts without a new step one after another end the run.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto

from skyrl_modal.container.command_attempt import Outcome
from skyrl_modal.dataclass import replace
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.state import FailureCause, NextStart, RunState
from skyrl_modal.protocol.status import AttemptHistory

#: Number of attempts without a new step, one after another, that end a run with ``resume``.
MAX_WITHOUT_PROGRESS = 2


class Decision(Enum):
    """What follows after an attempt."""

    END = auto()
    REPEAT = auto()
    #: End the run, although retries are left.
    END_WITHOUT_PROGRESS = auto()


def with_start(history: AttemptHistory, step: int | None) -> AttemptHistory:
    """Return a history in which steps up to one that an attempt continues from are not new.

    Args:
        history: The history before the attempt.
        step: The step of the checkpoint; None for none.
    """
    return replace(history, best_step=step) if _is_new(history, step) else history


def with_attempt(history: AttemptHistory, reached: int | None) -> AttemptHistory:
    """Return a history with a further attempt that has failed.

    Args:
        history: The history before it.
        reached: The greatest step of the run until then; None if none is known.

    Example:
        >>> first = with_attempt(AttemptHistory(), 5)
        >>> second = with_attempt(first, 5)
        >>> (first.counted, second.counted, second.without_progress)
        (0, 1, 1)
    """
    if _is_new(history, reached):
        return replace(history, best_step=reached, without_progress=0)
    return replace(history, counted=history.counted + 1, without_progress=history.without_progress + 1)


class Retries:
    """Decides what follows after the attempts of a run.

    Args:
        job: The run.
        history: What its earlier attempts have reached.
        steps: Training steps that other ranks have reported.

    Attributes:
        history: The same with the attempts since then.
    """

    def __init__(self, job: Job, history: AttemptHistory, steps: Iterable[int] = ()) -> None:
        self._job = job
        self._steps = steps
        self.history = history

    def decide(self, outcome: Outcome, attempts: int, *, is_late: bool = False) -> Outcome:
        """Return the outcome of a failed attempt, with the next attempt as the next start if one follows.

        Args:
            outcome: How it ended.
            attempts: Number of attempts that were made.
            is_late: Whether the limit on all attempts together is exceeded.
        """
        decision = self.count(attempts)
        codes = self._job.limits.retry_exit_codes
        if outcome.state not in (RunState.FAILED, RunState.TIMED_OUT) or is_late:
            return outcome
        if codes is not None and outcome.returncode not in codes:
            return outcome
        match decision:
            case Decision.REPEAT:
                return replace(outcome, next_start=NextStart.NEXT_ATTEMPT)
            case Decision.END_WITHOUT_PROGRESS:
                return without_progress_outcome(outcome, self.history)
        return outcome

    def count(self, attempts: int) -> Decision:
        """Count an attempt that has failed, and return what follows whatever its exit code is.

        Args:
            attempts: Number of attempts that were made.
        """
        counted = attempts
        if self._job.resume is not None:
            from skyrl_modal.container.training_steps import reached_step  # imported here: most runs need no steps

            self.history = with_attempt(self.history, reached_step(self._job, self._steps))
            counted = self.history.counted
        if counted > self._job.limits.retries:
            return Decision.END
        stuck = self.history.without_progress >= MAX_WITHOUT_PROGRESS
        return Decision.END_WITHOUT_PROGRESS if stuck else Decision.REPEAT


def no_progress_text(history: AttemptHistory) -> str:
    """Return the reason of the end of a run without progress."""
    reached = "no step was reached" if history.best_step is None else f"the greatest step is {history.best_step:,}"
    return f"{MAX_WITHOUT_PROGRESS} attempts one after another reached no new step ({reached})"


def without_progress_outcome(outcome: Outcome, history: AttemptHistory) -> Outcome:
    """Return the outcome of a run whose attempts make no progress. The exit code is that of the last attempt."""
    last = outcome.detail or f"exit code {outcome.returncode}"
    detail = f"{no_progress_text(history)}; the last one ended with: {last}"
    return replace(outcome, state=RunState.FAILED, cause=FailureCause.NO_PROGRESS, detail=detail, time_limit=None)


def _is_new(history: AttemptHistory, step: int | None) -> bool:
    return step is not None and (history.best_step is None or step > history.best_step)
