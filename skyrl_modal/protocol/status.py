"""What a run is doing: ``state.json``."""

from __future__ import annotations

from skyrl_modal.dataclass import dataclass
from skyrl_modal.protocol.job import SCHEMA_VERSION
from skyrl_modal.protocol.state import RunState


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusRecord:
    """The state of a run that has not ended.

    Attributes:
        state: The state.
        attempt: Number of attempts that were started; 0 before the first.
        dashboard_url: URL of Ray's dashboard; None if it does not run.
        schema_version: Version of this record's schema.
    """

    state: RunState
    attempt: int = 0
    dashboard_url: str | None = None
    schema_version: int = SCHEMA_VERSION
