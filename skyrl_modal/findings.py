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
