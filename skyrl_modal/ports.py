"""Ports of this machine, which runs that start at the same time must not use twice.

A port is claimed by a name in Linux's abstract socket namespace (unix(7)), which all users share, as they share the
ports. The kernel removes the name when the process that holds the socket exits, so no claim is left behind.
"""

from __future__ import annotations

import socket
import sys

#: Ray's default port of the dashboard (ray/_private/ray_constants.py, DEFAULT_DASHBOARD_PORT).
DASHBOARD_PORT = 8265
#: torch's default for MASTER_PORT (torch/distributed/run.py).
MASTER_PORT = 29500
#: Number of ports that are tried until one is used without a claim. Any process can hold the names of all ports.
_CLAIM_ATTEMPTS = 16


def claim_port(preferred: int) -> tuple[int, socket.socket | None]:
    """Claim a port of this machine: the preferred one, or any free one if it is in use or claimed by another run.

    Two runs that start at the same time would both find a port free before either listens on it.

    Returns:
        The port, and the claim, which is to be kept open while the port is used. None on systems other than Linux, and
        if all ports that were tried are claimed.
    """
    candidate = preferred
    for _ in range(_CLAIM_ATTEMPTS):
        claim = _claim_name(f"port-{candidate}")
        is_claimed = claim is not None or sys.platform != "linux"
        if is_claimed and is_port_free(candidate):
            return candidate, claim
        if claim is not None:
            claim.close()
        candidate = free_port()
    return candidate, None


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
    """Bind an abstract socket; None if another process holds the name, and on systems other than Linux."""
    if sys.platform != "linux":
        return None
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        claim.bind(f"\0skyrl_modal-{name}")
    except OSError:
        claim.close()
        return None
    return claim
