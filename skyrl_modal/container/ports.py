"""Ports of this machine, and turns to start Ray on it, shared between runs that start at the same time.

Each is claimed by a name in Linux's abstract socket namespace (unix(7)): the kernel removes the name when the process
that holds the socket exits, so no claim is left behind.
"""

from __future__ import annotations

import os
import socket
import sys

#: Ray's default port of the dashboard (ray/_private/ray_constants.py, DEFAULT_DASHBOARD_PORT).
DASHBOARD_PORT = 8265
#: torch's default for MASTER_PORT (torch/distributed/run.py).
MASTER_PORT = 29500


def claim_port(preferred: int) -> tuple[int, socket.socket | None]:
    """Claim a port of this machine: the preferred one, or any free one if it is in use or claimed by another run.

    Two runs that start at the same time would both find a port free before either listens on it.

    Returns:
        The port, and the claim, which is to be kept open while the port is used. None on systems other than Linux.
    """
    candidate = preferred
    while True:
        claim = None
        if sys.platform == "linux":
            claim = _claim_name(f"port-{candidate}")
            if claim is None:
                candidate = free_port()
                continue
        if is_port_free(candidate):
            return candidate, claim
        if claim is not None:
            claim.close()
        candidate = free_port()


def claim_start_slots(count: int) -> list[socket.socket] | None:
    """Claim slots to start Ray nodes on this machine. There are as many slots as CPUs, but at least two.

    A Ray node that is not up after 30 seconds exits (ray/_private/node.py), and many nodes that start at the same time
    take longer than that.

    Args:
        count: Number of nodes to start. If it exceeds the number of slots, all slots are claimed.

    Returns:
        The claims, which are to be closed when the nodes are up. None if too few slots are free now.
    """
    if sys.platform != "linux":
        return []
    total = max(2, os.cpu_count() or 1)
    claims: list[socket.socket] = []
    for number in range(total):
        claim = _claim_name(f"ray-start-{number}")
        if claim is None:
            continue
        claims.append(claim)
        if len(claims) == min(count, total):
            return claims
    for claim in claims:
        claim.close()
    return None


def is_port_free(port: int) -> bool:
    """Return whether a TCP port can be listened on, on all addresses."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """Return a TCP port that nothing listens on now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("0.0.0.0", 0))
        port: int = probe.getsockname()[1]
        return port


def _claim_name(name: str) -> socket.socket | None:
    """Bind an abstract socket; None if another process holds the name."""
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        claim.bind(f"\0skyrl_modal-{name}")
    except OSError:
        claim.close()
        return None
    return claim
