"""Events inside one supervisor. They arrive in its queue from threads and from signal handlers.

Nothing changes an event. The classes are not frozen only because that doubles the time that their definition takes at
the start of every run (0.5 instead of 0.25 ms each, CPython 3.11).
"""

from __future__ import annotations

from collections.abc import Mapping

from skyrl_modal.dataclass import dataclass
from skyrl_modal.protocol.messages import HeadMessage, Hello, RankMessage
from skyrl_modal.protocol.state import StopReason

# -- processes of this rank ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class CommandExited:
    """The command exited.

    Attributes:
        status: Exit status as in ``subprocess.Popen.returncode``.
    """

    status: int


@dataclass(slots=True)
class ChildExited:
    """A child of the supervisor exited, possibly an adopted one whose exit status is to be collected."""


# -- requests and time -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class StopRequested:
    """The run is to stop."""

    reason: StopReason


@dataclass(slots=True)
class DeadlineReached:
    """No event arrived before the deadline of the wait."""


# -- Ray on this rank ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
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


@dataclass(slots=True)
class ClusterNodes:
    """One line that the readiness probe prints.

    Attributes:
        version: Ray's version on rank 0.
        nodes: All living nodes.
    """

    version: str
    nodes: tuple[ClusterNode, ...]


@dataclass(slots=True)
class RayNodeExited:
    """Ray exited on this rank.

    Attributes:
        start: Number of the start of Ray; events of an earlier start are ignored.
        returncode: Exit code of ``ray start``.
    """

    start: int
    returncode: int


@dataclass(slots=True)
class ClusterChanged:
    """The number of living Ray nodes changed."""

    start: int
    cluster: ClusterNodes


@dataclass(slots=True)
class ReadinessProbeFailed:
    """The process that polls the cluster's nodes exited with an error."""

    start: int
    returncode: int


# -- connections between the ranks -----------------------------------------------------------------------------------


@dataclass(slots=True)
class RankJoined:
    """A rank connected to rank 0."""

    rank: int
    hello: Hello


@dataclass(slots=True)
class RankMessageReceived:
    """A rank sent a message to rank 0."""

    rank: int
    message: RankMessage


@dataclass(slots=True)
class RankDisconnected:
    """The connection to a rank was closed or lost."""

    rank: int


@dataclass(slots=True)
class HeadMessageReceived:
    """Rank 0 sent a message to this rank."""

    message: HeadMessage


@dataclass(slots=True)
class HeadDisconnected:
    """The connection to rank 0 was closed or lost."""


RayEvent = RayNodeExited | ClusterChanged | ReadinessProbeFailed
RankEvent = RankJoined | RankMessageReceived | RankDisconnected
HeadEvent = HeadMessageReceived | HeadDisconnected
#: Events of rank 0 and of the other ranks.
Event = CommandExited | ChildExited | StopRequested | DeadlineReached | RayEvent | RankEvent | HeadEvent
