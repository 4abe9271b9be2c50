"""Events inside one supervisor. They arrive in its queue from threads and from signal handlers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from skyrl_modal.protocol.messages import HeadMessage, Hello, RankMessage
from skyrl_modal.protocol.state import StopReason

# -- processes of this rank ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CommandExited:
    """The command exited.

    Attributes:
        status: Exit status as in ``subprocess.Popen.returncode``.
    """

    status: int


@dataclass(frozen=True, slots=True)
class ChildExited:
    """A child of the supervisor exited, possibly an adopted one whose exit status is to be collected."""


# -- requests and time -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The run is to stop."""

    reason: StopReason


@dataclass(frozen=True, slots=True)
class DeadlineReached:
    """No event arrived before the deadline of the wait."""


# -- Ray on this rank ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClusterNode:
    """One living Ray node.

    Attributes:
        id: Ray's id of the node, in hex.
        name: The name that the rank gave to its node.
        address: The node's address.
        resources: Total amount of each resource, such as ``{"CPU": 8.0}``.
    """

    id: str
    name: str
    address: str
    resources: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ClusterNodes:
    """One line that the readiness probe prints.

    Attributes:
        version: Ray's version on rank 0.
        nodes: All living nodes.
    """

    version: str
    nodes: tuple[ClusterNode, ...]


@dataclass(frozen=True, slots=True)
class RayNodeExited:
    """Ray exited on this rank.

    Attributes:
        start: Number of the start of Ray; events of an earlier start are ignored.
        returncode: Exit code of ``ray start``.
    """

    start: int
    returncode: int


@dataclass(frozen=True, slots=True)
class ClusterChanged:
    """The number of living Ray nodes changed."""

    start: int
    cluster: ClusterNodes


@dataclass(frozen=True, slots=True)
class ReadinessProbeFailed:
    """The process that polls the cluster's nodes exited with an error."""

    start: int
    returncode: int


# -- connections between the ranks -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RankJoined:
    """A rank connected to rank 0."""

    rank: int
    hello: Hello


@dataclass(frozen=True, slots=True)
class RankMessageReceived:
    """A rank sent a message to rank 0."""

    rank: int
    message: RankMessage


@dataclass(frozen=True, slots=True)
class RankDisconnected:
    """The connection to a rank was closed or lost."""

    rank: int


@dataclass(frozen=True, slots=True)
class HeadMessageReceived:
    """Rank 0 sent a message to this rank."""

    message: HeadMessage


@dataclass(frozen=True, slots=True)
class HeadDisconnected:
    """The connection to rank 0 was closed or lost."""


RayEvent = RayNodeExited | ClusterChanged | ReadinessProbeFailed
RankEvent = RankJoined | RankMessageReceived | RankDisconnected
HeadEvent = HeadMessageReceived | HeadDisconnected
#: Events of rank 0 and of the other ranks.
Event = CommandExited | ChildExited | StopRequested | DeadlineReached | RayEvent | RankEvent | HeadEvent
