"""States of a run, and why it stopped or failed. Every decision is made on these enums and never on a message."""

from __future__ import annotations

from skyrl_modal.protocol.codec import TolerantStrEnum


class RunState(TolerantStrEnum):
    """What a run is doing, or how it ended.

    Example:
        >>> RunState("failed").is_final, RunState.RUNNING.is_final
        (True, False)
        >>> RunState("a state of a later version")
        <RunState.UNKNOWN: 'unknown'>
    """

    PENDING = "pending"
    PREPARING = "preparing"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    LOST = "lost"
    OVER_BUDGET = "over_budget"
    UNKNOWN = "unknown"

    @property
    def is_final(self) -> bool:
        """Whether the run has ended."""
        return self not in (RunState.PENDING, RunState.PREPARING, RunState.RUNNING, RunState.UNKNOWN)


class StopReason(TolerantStrEnum):
    """Why a run was asked to stop."""

    #: Ctrl-C, or ``Run.cancel``.
    CANCELLED = "cancelled"
    #: The process that owns the run exited.
    CALLER_EXITED = "caller_exited"
    #: Rank 0 of the cluster exited.
    RANK_ZERO_EXITED = "rank_zero_exited"
    #: The container ends: a preemption, or the end of its app.
    CONTAINER_ENDING = "container_ending"
    #: The process that owns the run did not renew its lease.
    LEASE_EXPIRED = "lease_expired"
    #: The command did not start within ``start_deadline``.
    START_DEADLINE = "start_deadline"
    #: The cost reached ``budget``.
    OVER_BUDGET = "over_budget"
    #: A stop without a grace period.
    KILL = "kill"
    UNKNOWN = "unknown"


class FailureCause(TolerantStrEnum):
    """Why a run did not succeed."""

    #: The command ended with an exit code other than 0.
    COMMAND_FAILED = "command_failed"
    #: The command could not be started.
    COMMAND_NOT_STARTED = "command_not_started"
    #: The folder that the command was to run in does not exist.
    WORKDIR_MISSING = "workdir_missing"
    #: The mounted files could not be created in the container: an archive is damaged, or the disk is full.
    FILES_NOT_UNPACKED = "files_not_unpacked"
    #: An attempt ran longer than ``timeout``.
    ATTEMPT_TIMEOUT = "attempt_timeout"
    #: All attempts together ran longer than the backend allows.
    TOTAL_TIMEOUT = "total_timeout"
    #: The run was asked to stop; ``stop_reason`` is the reason.
    STOPPED = "stopped"
    #: The platform moved the run to another container, and the run did not continue there.
    PREEMPTED = "preempted"
    #: There is no ``ray`` program where the run executes.
    RAY_NOT_INSTALLED = "ray_not_installed"
    #: Ray is installed without its dashboard, and the dashboard was requested.
    DASHBOARD_NOT_INSTALLED = "dashboard_not_installed"
    #: Ray did not become ready within ``RaySpec.start_timeout``, or ended before that.
    RAY_NOT_READY = "ray_not_ready"
    #: Ray is too old for what was requested.
    RAY_VERSION_MISMATCH = "ray_version_mismatch"
    #: Ray ended on a node while the command ran.
    RAY_EXITED = "ray_exited"
    #: The command called ``ray stop``, which ended the run's own Ray.
    RAY_STOPPED = "ray_stopped"
    #: The connection to a rank was lost: its container or its supervisor exited.
    RANK_LOST = "rank_lost"
    #: A rank reported that it cannot continue.
    RANK_FAILED = "rank_failed"
    #: A node has fewer GPUs or CPUs than requested.
    GPUS_MISSING = "gpus_missing"
    #: The container exited without a result.
    CONTAINER_DIED = "container_died"
    #: The supervisor exited without a result.
    SUPERVISOR_DIED = "supervisor_died"
    #: The command succeeded, but its files could not be committed to a volume.
    VOLUME_COMMIT_FAILED = "volume_commit_failed"
    #: The run could not be started.
    NOT_STARTED = "not_started"
    #: The run was killed, and the backend has not confirmed it.
    NOT_CONFIRMED = "not_confirmed"
    #: An operating system error outside of the command, such as a full disk.
    SYSTEM_ERROR = "system_error"
    #: The cost reached ``budget``.
    OVER_BUDGET = "over_budget"
    #: The account's spend limit was reached.
    SPEND_LIMIT = "spend_limit"
    #: The caller sent no sign of life for longer than ``lease``.
    LEASE_EXPIRED = "lease_expired"
    #: Further attempts made no progress.
    NO_PROGRESS = "no_progress"
    #: There was no output and no new step for longer than ``stall``.
    STALLED = "stalled"
    #: The newest checkpoint cannot be loaded by the trainer: it has another number of GPUs, or another strategy.
    CHECKPOINT_MISMATCH = "checkpoint_mismatch"
    #: Another run that has not ended writes to the same checkpoint folder.
    CHECKPOINTS_IN_USE = "checkpoints_in_use"
    #: The platform had no machine of the requested type.
    NO_CAPACITY = "no_capacity"
    #: The command did not start within ``start_deadline``.
    START_DEADLINE = "start_deadline"
    UNKNOWN = "unknown"


class NextStart(TolerantStrEnum):
    """Whether another container of the same run continues it."""

    NONE = "none"
    #: It starts the same attempt again, which was interrupted by the platform.
    SAME_ATTEMPT = "same_attempt"
    #: It starts the attempt that this container could not start.
    PENDING_ATTEMPT = "pending_attempt"
    #: It starts the next attempt: this one failed.
    NEXT_ATTEMPT = "next_attempt"
    UNKNOWN = "unknown"


class VolumeEntryKind(TolerantStrEnum):
    """What an entry of a volume is."""

    FILE = "file"
    FOLDER = "dir"
    OTHER = "other"
    UNKNOWN = "unknown"
