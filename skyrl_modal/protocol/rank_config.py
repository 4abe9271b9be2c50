"""Where a supervisor stands: its rank, the addresses of all ranks, and what its node has."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Place:
    """One rank's place in a run's cluster. A run on one node is a cluster of one.

    Attributes:
        rank: 0 for the one that runs the command.
        addresses: The address of each rank, by which the others reach it.
        port: The port on which rank 0 listens for the others.
        token: What they say so that it knows them.
        listener: Rank 0's descriptor that listens already; None where it is to listen itself.
        cpus: CPUs that this node's Ray may hand out; None for all it finds.
        gpus: GPUs that this node has; None where nobody has counted.
        object_store_memory: Bytes of this node's object store; None for Ray's default.
        env: Variables of this node's own.
        is_offline: Whether this node reaches the other ranks only.
    """

    rank: int = 0
    addresses: tuple[str, ...] = ("127.0.0.1",)
    port: int = 0
    token: str = ""
    listener: int | None = None
    cpus: int | None = None
    gpus: int | None = None
    object_store_memory: int | None = None
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    is_offline: bool = False

    @property
    def address(self) -> str:
        """This node's own address."""
        return self.addresses[self.rank]

    @property
    def nodes(self) -> int:
        """How many nodes there are."""
        return len(self.addresses)

    @property
    def name(self) -> str:
        """What Ray calls this node; addresses will not do, since nodes on one machine may share theirs."""
        return node_name(self.rank)

    def describe(self, rank: int) -> str:
        """A rank in words."""
        return f"rank {rank} ({self.addresses[rank]})"

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Place:
        """The place that a record of plain data tells."""
        return cls(**{**record, "addresses": tuple(record["addresses"])})


def node_name(rank: int) -> str:
    """What Ray calls the node of a rank."""
    return f"rank-{rank}"
