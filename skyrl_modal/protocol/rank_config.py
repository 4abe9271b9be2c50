"""What one rank needs to know about its node and about the other ranks."""

from __future__ import annotations

import os
from collections.abc import Mapping

from skyrl_modal.dataclass import dataclass, field

TYPE_CHECKING = False  # the same as in typing, whose import takes time

if TYPE_CHECKING:
    from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterTokens:
    """Random tokens of one run. They are passed to the ranks and never written to a volume.

    Attributes:
        ranks: Authenticates the ranks to rank 0.
        ray: Authenticates every client of the run's Ray cluster (``RAY_AUTH_TOKEN``).
    """

    ranks: str = field(default="", repr=False)
    ray: str = field(default="", repr=False)

    @classmethod
    def generate(cls) -> Self:
        """Return new random tokens. Ray requires at least 32 hexadecimal digits."""
        return cls(ranks=os.urandom(16).hex(), ray=os.urandom(32).hex())


@dataclass(frozen=True, slots=True, kw_only=True)
class RankConfig:
    """One rank of a run's cluster. A run on one node is a cluster with one rank.

    Attributes:
        rank: 0 for the rank that runs the command.
        addresses: The address of each rank.
        port: The port on which rank 0 listens for the other ranks.
        tokens: The run's tokens.
        listener_fd: A descriptor of rank 0 that listens already; None if rank 0 is to open it.
        rank_fds: Descriptors of rank 0, one for each other rank: it is closed at its other end when that rank exits.
            Empty if only the connections show that a rank has exited.
        master_port: The port for MASTER_PORT of the command, which another process has claimed; None to claim one.
        start_slots_fd: A descriptor of the folder with the files that limit how many runs start their Ray at the same
            time; None if no other run starts on this machine.
        cpus: CPUs that this node's Ray may use; None for all that it finds.
        gpus: GPUs of this node; None if they have not been counted.
        gpu_problem: What failed when they were counted; empty if nothing did.
        ray_folder: The folder for the files of Ray's head, whose sockets need a short path; None for ``ray`` in
            $TMPDIR.
        object_store_memory: Size of this node's object store in bytes; None for Ray's default.
        env: Variables of this node only.
        has_modal_runtime: Whether Modal started this process, so that the command must not inherit its runtime.
        has_no_internet: Whether this node can reach the other ranks only.
        shares_tmp: Whether /tmp is that of the machine, which other runs use too.
    """

    rank: int = 0
    addresses: tuple[str, ...] = ("127.0.0.1",)
    port: int = 0
    tokens: ClusterTokens = ClusterTokens()
    listener_fd: int | None = None
    rank_fds: tuple[int, ...] = ()
    master_port: int | None = None
    start_slots_fd: int | None = None
    cpus: int | None = None
    gpus: int | None = None
    gpu_problem: str = ""
    object_store_memory: int | None = None
    ray_folder: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    has_modal_runtime: bool = False
    has_no_internet: bool = False
    shares_tmp: bool = False

    @property
    def address(self) -> str:
        """This node's own address."""
        return self.addresses[self.rank]

    @property
    def nodes(self) -> int:
        """Number of nodes in the cluster."""
        return len(self.addresses)

    @property
    def name(self) -> str:
        """This node's name in Ray. Addresses are not unique: nodes on one machine may share theirs."""
        return node_name(self.rank)

    def rank_label(self, rank: int) -> str:
        """Return a rank with its address, for messages.

        Example:
            >>> RankConfig(addresses=("10.0.0.1", "10.0.0.2")).rank_label(1)
            'rank 1 (10.0.0.2)'
        """
        return f"rank {rank} ({self.addresses[rank]})"


def node_name(rank: int) -> str:
    """Return the name in Ray of the node of a rank."""
    return f"rank-{rank}"
