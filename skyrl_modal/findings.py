"""Plain records about problems: found in a plan before a run, or diagnosed after one."""

from __future__ import annotations

from enum import StrEnum

from skyrl_modal.dataclass import dataclass


class Severity(StrEnum):
    """How serious a finding is."""

    #: The run will fail.
    ERROR = "error"
    #: The run may fail, or may not do what its author expects.
    WARNING = "warning"
    #: The user may want to know it.
    NOTE = "note"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One problem that was found before a run.

    Attributes:
        code: A stable identifier, such as ``"ray-start-in-script"``.
        severity: How serious it is.
        message: What was found.
        remedy: What to do about it; empty if nothing is needed.
        overrides: ``key=value`` arguments that remove the problem, if they reach the trainer; empty if there are none.
    """

    code: str
    severity: Severity
    message: str
    remedy: str = ""
    overrides: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.message}. {self.remedy}" if self.remedy else self.message


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A line of a log that shows why a run failed.

    Attributes:
        file: The log, such as ``output.log`` or ``ray/worker-….err``.
        line: Number of the line, from 1; None if it is not known.
        text: The line, without colours; of a long line, its beginning.
        rank: The rank that has written the log.
        attempt: Number of the attempt, from 1; None if it is not known.
    """

    file: str
    text: str
    line: int | None = None
    rank: int = 0
    attempt: int | None = None

    @property
    def place(self) -> str:
        """File and line for people, such as ``output.log:12`` or ``rank 1, attempt 2, ray/raylet.out:3``."""
        rank = f"rank {self.rank}, " if self.rank else ""
        attempt = f"attempt {self.attempt}, " if self.attempt is not None and self.attempt > 1 else ""
        return f"{rank}{attempt}{self.file}" + ("" if self.line is None else f":{self.line}")


#: The code of a diagnosis without a known cause.
UNKNOWN_CAUSE = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Why a run failed, by its logs.

    Attributes:
        code: A stable identifier, such as ``"gpu-out-of-memory"``; ``"unknown"`` if no rule describes the failure.
        cause: What happened.
        remedy: What to do about it; empty if that is not known.
        evidence: The lines that show it, the most important one first. If the cause is not known, the most informative
            lines of each log.
    """

    code: str
    cause: str
    remedy: str = ""
    evidence: tuple[Evidence, ...] = ()

    @property
    def is_known(self) -> bool:
        """Whether a rule describes the failure."""
        return self.code != UNKNOWN_CAUSE
