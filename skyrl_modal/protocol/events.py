"""What happens in a run, as its caller sees it.

The local supervisor writes these events as lines of JSON (``codec.encode_tagged``), except for the output, which has a
pipe of its own. On Modal they are built from the log.
"""

from __future__ import annotations

from collections.abc import Mapping

from skyrl_modal.dataclass import dataclass
from skyrl_modal.protocol.codec import TolerantStrEnum
from skyrl_modal.protocol.result import RunResultRecord
from skyrl_modal.protocol.state import FailureCause, RunState


class MessageLevel(TolerantStrEnum):
    """Severity of a launcher message."""

    INFO = "info"
    WARNING = "warning"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class OutputEvent:
    """A part of the command's output."""

    data: bytes


@dataclass(frozen=True, slots=True)
class MessageEvent:
    """A message of the launcher.

    Attributes:
        text: One or more lines.
        level: Its severity.
        cause: The cause of failure that it reports; None if it reports none.
    """

    text: str
    level: MessageLevel = MessageLevel.INFO
    cause: FailureCause | None = None


@dataclass(frozen=True, slots=True)
class StateEvent:
    """The run has another state.

    Attributes:
        state: The state.
        attempt: Number of attempts that were started; 0 before the first one.
    """

    state: RunState
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class HandleEvent:
    """The backend has started the run, which can be attached to by this handle from now on."""

    handle: Mapping[str, str | int]


@dataclass(frozen=True, slots=True)
class ResultEvent:
    """The run has ended. This is the last event."""

    record: RunResultRecord


#: Everything that ``Execution.events`` yields.
RunEvent = OutputEvent | MessageEvent | StateEvent | HandleEvent | ResultEvent
#: What the local supervisor writes to its caller.
SupervisorEvent = MessageEvent | StateEvent | ResultEvent
