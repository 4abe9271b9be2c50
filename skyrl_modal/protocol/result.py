"""The result of a run: ``result.json``, and what is built for a run that left none."""

from __future__ import annotations

from datetime import UTC, datetime

from skyrl_modal.dataclass import dataclass
from skyrl_modal.protocol.job import SCHEMA_VERSION, Job
from skyrl_modal.protocol.state import FailureCause, NextStart, RunState, StopReason

TYPE_CHECKING = False  # the same as in typing, whose import takes time

if TYPE_CHECKING:
    from typing import Self

#: The largest exit code of a process (wait(2)).
MAX_RETURNCODE = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamDigest:
    """How much text was written to a stream, and its digest.

    Attributes:
        characters: Number of characters.
        sha256: SHA-256 of the text in UTF-8, in hex.
    """

    characters: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputRecord:
    """What was kept of the command's output.

    Attributes:
        bytes: Size of output.log.
        error: Why output.log is incomplete; None if it is complete.
        live: What was written to the live view; None on a backend that does not count it.
        total: Number of bytes of output of the container that wrote this record; None if it is not known.
        stored: Number of bytes, from the beginning of that output, that output.log has at the same positions; None if
            it is not known.
    """

    bytes: int = 0
    error: str | None = None
    live: StreamDigest | None = None
    total: int | None = None
    stored: int | None = None


@dataclass(frozen=True, slots=True)
class UnsavedFolder:
    """A folder, or a file, with new content that is in no volume and was lost with the run.

    Attributes:
        path: Its path in the container.
        files: Number of new files.
        bytes: Their size.
    """

    path: str
    files: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResultRecord:
    """How a run ended.

    Attributes:
        run_id: The run's id.
        state: A final state.
        returncode: The command's exit code, see ``protocol.exit_codes`` for the launcher's own.
        attempts: How many times the command was started.
        started_at: When the run started in its container: ISO 8601, UTC.
        duration: Seconds from then to its end.
        cause: Why the run did not succeed; None if it succeeded.
        stop_reason: Why the run was asked to stop; None if it was not.
        time_limit: The limit in seconds that the run exceeded; None if it exceeded none.
        failed_rank: The rank that made the run fail; None if it is not known.
        detail: Description of the cause for people. No decision depends on it.
        output: What was kept of the output.
        volume_error: Why a volume could not be committed; None if all were.
        next_start: Whether another container continues the run.
        unsaved: New files of rank 0 that were lost, by folder.
        container_seconds: Seconds of all containers of all attempts together; None if they were not counted.
        cost: What they cost, in US dollars; None if that is not known.
        schema_version: Version of this record's schema.
    """

    run_id: str
    state: RunState
    returncode: int
    attempts: int
    started_at: str
    duration: float
    cause: FailureCause | None = None
    stop_reason: StopReason | None = None
    time_limit: float | None = None
    failed_rank: int | None = None
    detail: str = ""
    output: OutputRecord = OutputRecord()
    volume_error: str | None = None
    next_start: NextStart = NextStart.NONE
    unsaved: tuple[UnsavedFolder, ...] = ()
    container_seconds: float | None = None
    cost: float | None = None
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Raise ValueError for a result that no run can have: readers use these values without further checks."""
        if not self.state.is_final and self.state is not RunState.UNKNOWN:
            raise ValueError(f"{self.state} is not the state of a run that has ended")
        if not 0 <= self.returncode <= MAX_RETURNCODE:
            raise ValueError(f"an exit code is between 0 and {MAX_RETURNCODE}, not {self.returncode!r}")
        if datetime.fromisoformat(self.started_at).tzinfo is None:
            raise ValueError(f"started_at has no time zone: {self.started_at!r}")

    @property
    def is_replaced(self) -> bool:
        """Whether the container that wrote it was replaced by another one, since its GPUs did not work."""
        return self.next_start is NextStart.PENDING_ATTEMPT and self.cause is FailureCause.GPUS_MISSING

    @classmethod
    def without_record(
        cls,
        job: Job,
        *,
        state: RunState,
        returncode: int,
        cause: FailureCause,
        detail: str,
        stop_reason: StopReason | None = None,
        time_limit: float | None = None,
        attempts: int = 0,
        started_at: datetime | None = None,
    ) -> Self:
        """Return the result of a run that left no result.json. It ends now.

        Args:
            job: The run.
            state: Its final state.
            returncode: Its exit code.
            cause: Why it left no result.
            detail: Description of the cause.
            stop_reason: Why it was asked to stop; None if it was not.
            time_limit: The limit in seconds that it exceeded; None if it exceeded none.
            attempts: How many times the command was started, as far as that is known.
            started_at: When it started; None: when the job was created.
        """
        begin = started_at or datetime.fromisoformat(job.created_at)
        return cls(
            run_id=job.run_id,
            state=state,
            returncode=returncode,
            attempts=attempts,
            started_at=begin.isoformat(),
            duration=(datetime.now(UTC) - begin).total_seconds(),
            cause=cause,
            stop_reason=stop_reason,
            time_limit=time_limit,
            detail=detail,
        )
