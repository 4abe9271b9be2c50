"""What a run is doing: ``state.json``."""

from __future__ import annotations

from skyrl_modal.dataclass import dataclass
from skyrl_modal.protocol.job import SCHEMA_VERSION
from skyrl_modal.protocol.state import RunState


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptHistory:
    """What the ended attempts of a run with ``resume`` have reached.

    Attempts that the platform interrupted are not in it.

    Attributes:
        counted: Number of attempts that count against ``retries``: they reached no new step.
        best_step: The greatest step that was reached, or from which an attempt continued; None if it is not known.
        without_progress: Number of attempts, up to the last one, that reached no new step one after another.
    """

    counted: int = 0
    best_step: int | None = None
    without_progress: int = 0


#: The history before the first attempt has ended.
NO_HISTORY = AttemptHistory()


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusRecord:
    """The state of a run that has not ended.

    Attributes:
        state: The state.
        attempt: Number of attempts that were started; 0 before the first.
        dashboard_url: URL of Ray's dashboard; None if it does not run.
        history: What the ended attempts have reached.
        schema_version: Version of this record's schema.
    """

    state: RunState
    attempt: int = 0
    dashboard_url: str | None = None
    history: AttemptHistory = NO_HISTORY
    schema_version: int = SCHEMA_VERSION
