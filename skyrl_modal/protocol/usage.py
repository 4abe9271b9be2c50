"""The time that the containers of a run have taken: ``usage.json``, written by rank 0."""

from __future__ import annotations

from skyrl_modal.dataclass import dataclass
from skyrl_modal.protocol.job import SCHEMA_VERSION, NodeRate

USAGE_FILE = "usage.json"
#: Durations, and seconds since the epoch, that are above this are damaged: 3,000 years.
MAX_SECONDS = 1e11


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerUsage:
    """The time of one container of a run. A container has one rank of the cluster.

    Attributes:
        container: Random digits of one execution of the function by rank 0, which its other ranks share.
        rank: The rank.
        attempt: Number of the last attempt that it has started; 0 before the first.
        started_at: When its process started: seconds since the epoch, by its own clock.
        seconds: How long it has run, until the record was written, or until its end.
        has_ended: Whether it has ended.
        is_estimated: Whether it was killed, so that its end is not known exactly.
    """

    container: str
    rank: int
    started_at: float
    seconds: float
    attempt: int = 0
    has_ended: bool = False
    is_estimated: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError for times that no container can have: readers calculate with them."""
        if not 0 <= self.seconds <= MAX_SECONDS or not 0 <= self.started_at <= MAX_SECONDS:
            raise ValueError(f"no container started at {self.started_at!r} and ran for {self.seconds!r} seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRecord:
    """The time of all containers of a run.

    Attributes:
        containers: One entry for each container, in the order of their starts.
        updated_at: When the record was written: seconds since the epoch.
        schema_version: Version of this record's schema.
    """

    containers: tuple[ContainerUsage, ...] = ()
    updated_at: float = 0.0
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Raise ValueError for a time at which no record was written."""
        if not 0 <= self.updated_at <= MAX_SECONDS:
            raise ValueError(f"no record was written at {self.updated_at!r}")

    @property
    def seconds(self) -> float:
        """Seconds of all containers together until the record was written."""
        return sum(item.seconds for item in self.containers)

    def seconds_at(self, now: float) -> float:
        """Return the seconds of all containers together at a later time, if those that had not ended continue to run.

        Args:
            now: Seconds since the epoch.

        Example:
            >>> item = {"container": "a", "started_at": 10.0, "seconds": 5.0}
            >>> ended, running = ContainerUsage(rank=1, has_ended=True, **item), ContainerUsage(rank=0, **item)
            >>> UsageRecord(containers=(ended, running), updated_at=15.0).seconds_at(18.0)
            13.0
        """
        running = sum(not item.has_ended for item in self.containers)
        return self.seconds + running * max(0.0, now - self.updated_at)


def cost_of(rate: NodeRate, seconds: float) -> float:
    """Return what containers cost, in US dollars.

    Example:
        >>> cost_of(NodeRate(per_hour=31.6), 1800)
        15.8
    """
    return rate.per_hour * seconds / 3600
