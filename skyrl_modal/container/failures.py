"""Why a run cannot start or continue: the cause for programs, and its description for people."""

from __future__ import annotations

from skyrl_modal.dataclass import dataclass
from skyrl_modal.protocol.state import FailureCause, StopReason

TYPE_CHECKING = False  # the same as in typing, whose import takes time

if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object

_STOP_DESCRIPTIONS = {
    StopReason.CANCELLED: "cancelled",
    StopReason.CALLER_EXITED: "the caller exited",
    StopReason.RANK_ZERO_EXITED: "rank 0 exited",
    StopReason.CONTAINER_ENDING: "the container is ending",
    StopReason.LEASE_EXPIRED: "the caller has sent no sign of life for longer than its lease",
    StopReason.START_DEADLINE: "the command did not start in time",
    StopReason.OVER_BUDGET: "the cost has reached the budget",
    StopReason.KILL: "killed without a grace period",
}


def describe_error(error: OSError) -> str:
    """Return an error of the system as text: the file, and what is wrong with it.

    Example:
        >>> describe_error(FileNotFoundError(2, "No such file or directory", "/root/data"))
        '/root/data: No such file or directory'
    """
    if error.filename is None or error.strerror is None:
        return error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {error.strerror}"


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure of the run that the command did not cause itself.

    Attributes:
        cause: Every decision is made on it.
        summary: One sentence.
        detail: Further lines, such as the tail of a log; empty for none.
        rank: The rank that failed; None if it is not known.
        is_of_machine: Whether the run may succeed in another container, since this machine caused the failure.
    """

    cause: FailureCause
    summary: str
    detail: str = ""
    rank: int | None = None
    is_of_machine: bool = False

    @property
    def text(self) -> str:
        """The summary, followed by the detail if there is one."""
        return f"{self.summary}:\n{self.detail}" if self.detail else self.summary


class StartError(Exception):
    """The command cannot be started."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.text)
        self.failure = failure


def raise_if(failure: Failure | None) -> None:
    """Raise StartError if there is a failure."""
    if failure is not None:
        raise StartError(failure)


class RunStopped(Exception):
    """The run was asked to stop before its command started."""

    def __init__(self, reason: StopReason) -> None:
        super().__init__(describe_stop(reason))
        self.reason = reason


class Report(Protocol):
    """Receives the messages of the launcher."""

    def __call__(self, text: str, cause: FailureCause | None = None) -> None:
        """Report a message, which names a cause if it explains why the run fails."""


def describe_stop(reason: StopReason) -> str:
    """Return a description of a stop reason for messages.

    Example:
        >>> describe_stop(StopReason.CALLER_EXITED)
        'the caller exited'
    """
    return _STOP_DESCRIPTIONS.get(reason, "for an unknown reason")


def cause_of_stop(reason: StopReason) -> FailureCause:
    """Return the cause of failure of a run that was asked to stop."""
    causes = {
        StopReason.CONTAINER_ENDING: FailureCause.PREEMPTED,
        StopReason.LEASE_EXPIRED: FailureCause.LEASE_EXPIRED,
        StopReason.OVER_BUDGET: FailureCause.OVER_BUDGET,
    }
    return causes.get(reason, FailureCause.STOPPED)
