"""Messages between rank 0 and the other ranks, sent as lines of JSON (``codec.encode_tagged``)."""

from __future__ import annotations

from collections.abc import Mapping

from skyrl_modal.dataclass import dataclass, field
from skyrl_modal.protocol.state import FailureCause, StopReason

# -- from rank 0 -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartRay:
    """Start a Ray node that joins the head.

    Attributes:
        head_address: HOST:PORT of the head.
        env: Variables that rank 0 has chosen for the whole cluster.
        attempt: Number of the attempt, for the logs that are kept.
    """

    head_address: str
    env: Mapping[str, str] = field(default_factory=dict)
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class StopRay:
    """Stop the Ray node, and answer with RayStopped.

    Attributes:
        is_failed: Whether the attempt has failed, so that what the machine reports is of use.
    """

    is_failed: bool = False


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Stop everything on this rank, save its logs and volumes, and close the connection.

    Attributes:
        is_failed: Whether the last attempt has failed.
    """

    is_failed: bool = False


@dataclass(frozen=True, slots=True)
class CommitTurn:
    """The rank may commit its volumes. It returns its turn by closing the connection."""


@dataclass(frozen=True, slots=True)
class WriteStacks:
    """Answer with Stacks."""


# -- to rank 0 -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message of a connection.

    Attributes:
        token: The run's token for ranks.
        rank: The rank that connects.
        gpus: GPUs of its node; None if they were not counted.
        gpu_problem: What failed when they were counted; empty if nothing did.
        age: Seconds since its process started; None if that is of no interest.
    """

    token: str = field(repr=False)
    rank: int
    gpus: int | None = None
    gpu_problem: str = ""
    age: float | None = None


@dataclass(frozen=True, slots=True)
class LogLine:
    """A launcher message of this rank."""

    text: str


@dataclass(frozen=True, slots=True)
class StopRequest:
    """This rank was asked to stop, so the run is to stop."""

    reason: StopReason


@dataclass(frozen=True, slots=True)
class RayExited:
    """The Ray node of this rank exited.

    Attributes:
        returncode: Exit code of ``ray start``.
        log_tail: The last lines of its logs.
        is_stopped: Whether ``ray stop`` ran on it at that time.
    """

    returncode: int
    log_tail: str
    is_stopped: bool = False


@dataclass(frozen=True, slots=True)
class RayStopped:
    """The Ray node was stopped, as rank 0 requested."""


@dataclass(frozen=True, slots=True)
class RankFailed:
    """This rank cannot continue."""

    cause: FailureCause
    detail: str


@dataclass(frozen=True, slots=True)
class CommitRequest:
    """This rank has ended its processes, and waits for CommitTurn."""


@dataclass(frozen=True, slots=True)
class StepReached:
    """Processes of this rank have reached a training step.

    Attributes:
        step: The greatest step of the attempt.
    """

    step: int


@dataclass(frozen=True, slots=True)
class Stacks:
    """The Python stacks of the processes of this rank.

    Attributes:
        text: The stacks, masked.
    """

    text: str


#: Everything that rank 0 sends.
HeadMessage = StartRay | StopRay | Shutdown | CommitTurn | WriteStacks
#: Everything that the other ranks send.
RankMessage = Hello | LogLine | StopRequest | RayExited | RayStopped | RankFailed | CommitRequest | StepReached | Stacks
