"""Says when a driver could connect: runs on the Python that Ray is installed for, beside ``ray start``.

Importing Ray takes about a second and needs no cluster, so it is done while the cluster comes up. Called as
``python ray_probe.py HOST PORT NODES``; prints a line of JSON, ``{"version": ..., "nodes": [...]}``, each time that
more nodes are alive, and ends once that many are. It ends with its parent: the supervisor holds the other end of its
standard input.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from typing import Any

#: Seconds between two questions to a cluster that is still coming up. The cluster has no event for it.
INTERVAL = 0.05


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def alive_nodes(client: Any) -> list[dict[str, Any]]:
    """The nodes that the cluster's GCS has as alive, with their resources."""
    found = []
    for node_id, node in client.get_all_node_info(timeout=5).items():
        if node.state == 0:  # GcsNodeInfo.ALIVE in Ray's gcs.proto
            found.append(
                {
                    "id": node_id.hex(),
                    "name": node.node_name,
                    "address": node.node_manager_address,
                    "resources": {name: float(amount) for name, amount in dict(node.resources_total).items()},
                }
            )
    return found


def main() -> None:
    """Wait for the cluster and tell what it is made of, as it grows."""
    host, port, expected = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import ray

    # The public ray.nodes() needs a driver of its own in the cluster, which costs seconds; this asks the GCS.
    from ray._raylet import GcsClient  # type: ignore[attr-defined,unused-ignore]  # a Cython module

    while True:
        try:
            socket.create_connection((host, port), 1).close()
            break
        except OSError:
            time.sleep(INTERVAL)
    client = GcsClient(address=f"{host}:{port}")
    last, told = "", -1
    while told < expected:
        try:
            nodes = alive_nodes(client)
        except Exception as error:  # Ray's own error types differ between versions; the supervisor holds the deadline
            if str(error) != last:
                last = str(error)
                print(last, file=sys.stderr, flush=True)
            nodes = []
        if len(nodes) != told:
            told = len(nodes)
            print(json.dumps({"version": ray.__version__, "nodes": nodes}), flush=True)
        else:
            time.sleep(INTERVAL)
    # Ray's client threads may hold up an orderly exit.
    os._exit(0)


if __name__ == "__main__":
    main()
