"""How the resources of this machine are divided among the ranks of a run."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from skyrl_modal.machine import visible_gpu_count
from skyrl_modal.protocol.rank_config import ClusterTokens, RankConfig

#: The part of the free memory that Ray uses for its object store by default (``ray start --help``), for all ranks
#: together.
OBJECT_STORE_FRACTION = 0.3
#: The smallest object store that Ray accepts (OBJECT_STORE_MINIMUM_MEMORY_BYTES in ray/_private/ray_constants.py).
MIN_OBJECT_STORE_BYTES = 75 * 1024 * 1024


def assign_resources(
    addresses: Sequence[str],
    port: int,
    listener: int | None,
    tokens: ClusterTokens,
    *,
    env: Mapping[str, str],
    private_networks: bool,
) -> list[RankConfig]:
    """Divide the resources of this machine equally among the ranks.

    Args:
        addresses: The address of each rank.
        port: The port on which rank 0 listens for the others.
        listener: The descriptor of rank 0 that listens on it.
        tokens: The run's tokens.
        env: The run's variables, of which CUDA_VISIBLE_DEVICES names the GPUs to divide.
        private_networks: Whether the ranks other than 0 have networks of their own, from which the internet cannot be
            reached.
    """
    nodes = len(addresses)
    cpus = max(1, len(os.sched_getaffinity(0)) // nodes) if hasattr(os, "sched_getaffinity") else None
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") if sys.platform == "linux" else 0
    visible = env.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(number) for number in range(visible_gpu_count(env))]
    gpus = len(devices) // nodes
    return [
        RankConfig(
            rank=rank,
            addresses=tuple(addresses),
            port=port,
            tokens=tokens,
            listener_fd=listener if rank == 0 else None,
            cpus=cpus,
            gpus=gpus,
            object_store_memory=max(MIN_OBJECT_STORE_BYTES, int(free * OBJECT_STORE_FRACTION / nodes))
            if free
            else None,
            has_no_internet=private_networks and rank > 0,
            env={"CUDA_VISIBLE_DEVICES": ",".join(devices[rank * gpus : (rank + 1) * gpus])} if devices else {},
        )
        for rank in range(nodes)
    ]
