"""Leases: entries of a Dict on Modal by which containers and callers show that they still run.

Only the change of a value has a meaning. A reader considers a lease expired if it has seen the same value for long
enough on its own clock, so that the clocks of two machines need not agree.
"""

from __future__ import annotations

import time
from typing import Self

from skyrl_modal.dataclass import dataclass

#: The Dict with the leases of all runs of an environment. Modal removes entries that were not used for 7 days (modal
#: 1.6.4, docstring of ``modal.Dict``), for example those of runs that were killed.
LEASE_DICT = "skyrl-modal-leases"
#: Seconds between two renewals of the lease of a container.
RENEWAL_INTERVAL = 3.0
#: Seconds without a renewal after which the lease of a container has expired.
EXPIRY_TIMEOUT = 15.0
#: Number of characters of a time in an entry, such as 1764244800.000.
_MAX_TIME_LENGTH = 15
#: Number of containers of one run that are replaced, if their GPUs do not work, before the run fails.
MAX_REPLACEMENTS = 3
#: Seconds between two renewals of the lease of a caller at least and at most.
MIN_CALLER_INTERVAL = 0.2
MAX_CALLER_INTERVAL = 10.0


def container_key(run_id: str, rank: int) -> str:
    """Return the key of the container that executes a rank of a run."""
    return f"{run_id}/{rank}"


def caller_key(run_id: str) -> str:
    """Return the key of the process that owns a run."""
    return f"{run_id}/caller"


def replacements_key(run_id: str) -> str:
    """Return the key of the number of containers that were replaced, since their GPUs did not work."""
    return f"{run_id}/replaced"


def records_key(run_id: str) -> str:
    """Return the key of the records of a run that has no folder on a volume."""
    return f"{run_id}/records"


def checkpoints_key(volume: str, folder: str) -> str:
    """Return the key of the run that writes to a checkpoint folder.

    Args:
        volume: The name of the volume.
        folder: The path on it.

    Example:
        >>> checkpoints_key("skyrl-data", "/ckpts/a")
        'checkpoints/skyrl-data/ckpts/a'
    """
    return f"checkpoints/{volume}/{folder.strip('/')}"


def caller_interval(lease: float) -> float:
    """Return the seconds between two renewals of a caller's lease: several renewals can be lost before it expires.

    Example:
        >>> caller_interval(600), caller_interval(12)
        (10.0, 2.0)
    """
    return min(max(lease / 6, MIN_CALLER_INTERVAL), MAX_CALLER_INTERVAL)


@dataclass(frozen=True, slots=True)
class ContainerEntry:
    """The value of a container's entry.

    Attributes:
        holder: Random digits of one execution of the function.
        count: Number of renewals.
        is_ending: Whether the platform has asked the container to exit.
        started_at: When its process started: seconds since the epoch, by its own clock; None if that is not known.
        seen_at: When it renewed the lease, by the same clock.
    """

    holder: str
    count: int = 0
    is_ending: bool = False
    started_at: float | None = None
    seen_at: float | None = None

    def encode(self) -> str:
        """Return the value as text.

        Example:
            >>> entry = ContainerEntry("a1", 3, is_ending=True)
            >>> entry.encode(), ContainerEntry.decode(entry.encode()) == entry
            ('a1 3 ending', True)
        """
        text = f"{self.holder} {self.count} {'ending' if self.is_ending else 'running'}"
        if self.started_at is None or self.seen_at is None:
            return text
        return f"{text} {self.started_at:.3f} {self.seen_at:.3f}"

    @classmethod
    def decode(cls, value: object) -> Self:
        """Return the entry for a value. Any other text is the entry of an unknown holder."""
        holder, _, rest = str(value).partition(" ")
        count, state, started_at, seen_at, *_ = [*rest.split(" "), "", "", "", ""]
        times = _parse_time(started_at), _parse_time(seen_at)
        return cls(holder, int(count) if count.isdecimal() else 0, state == "ending", *times)


def _parse_time(text: str) -> float | None:
    """Return seconds since the epoch; None for any other text. With more digits it would be no time."""
    return float(text) if len(text) <= _MAX_TIME_LENGTH and text.replace(".", "", 1).isdecimal() else None


@dataclass(frozen=True, slots=True)
class CheckpointEntry:
    """The value of the entry of a checkpoint folder.

    Attributes:
        run_id: The run that writes to it.
        holder: Random digits of one execution of the function.
        count: Number of renewals.
    """

    run_id: str
    holder: str
    count: int = 0

    def encode(self) -> str:
        """Return the value as text.

        Example:
            >>> entry = CheckpointEntry("r1", "a1", 3)
            >>> entry.encode(), CheckpointEntry.decode(entry.encode()) == entry
            ('r1 a1 3', True)
        """
        return f"{self.run_id} {self.holder} {self.count}"

    @classmethod
    def decode(cls, value: object) -> Self:
        """Return the entry for a value. Any other text is the entry of an unknown run."""
        run_id, _, rest = str(value).partition(" ")
        holder, _, count = rest.partition(" ")
        return cls(run_id, holder, int(count) if count.isdecimal() else 0)


def caller_value(count: int) -> str:
    """Return the value of a caller's entry: the number of renewals, and the time by the caller's clock."""
    return f"{count} {time.time():.0f}"


def caller_value_age(value: object) -> float | None:
    """Return how old a caller's value is if both clocks agree, in seconds; None if it contains no time.

    Example:
        >>> caller_value_age("none") is None, -1 < caller_value_age(caller_value(1)) < 5
        (True, True)
    """
    written_at = str(value).rpartition(" ")[2]
    return time.time() - int(written_at) if written_at.isdecimal() else None
