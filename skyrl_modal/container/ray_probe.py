"""Poll the cluster's nodes. Run by the Python interpreter that Ray is installed for, so it imports nothing else.

Importing Ray takes about a second and needs no cluster, so it is done while the cluster starts. Called as
``python ray_probe.py HOST PORT NODES``. It prints a line of JSON, ``{"version": ..., "nodes": [...]}``, whenever the
number of living nodes has changed, and exits when it has reached NODES. It also exits when its standard input is
closed, whose other end the supervisor holds.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from typing import Any

#: Seconds between two requests to a cluster that is starting. The cluster has no event for it.
INTERVAL = 0.05
#: State of a living node: GcsNodeInfo.ALIVE in src/ray/protobuf/gcs.proto.
ALIVE = 0
REQUEST_TIMEOUT = 5


def _exit_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def alive_nodes(client: Any) -> list[dict[str, Any]]:
    """Return the cluster's living nodes, with their resources."""
    return [
        {
            "id": node_id.hex(),
            "name": node.node_name,
            "address": node.node_manager_address,
            "resources": {name: float(amount) for name, amount in dict(node.resources_total).items()},
        }
        for node_id, node in client.get_all_node_info(timeout=REQUEST_TIMEOUT).items()
        if node.state == ALIVE
    ]


def main() -> None:
    """Wait for the cluster and print its nodes until all are alive."""
    host, port, expected = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    import ray

    # The public ray.nodes() needs a driver in the cluster, which takes seconds. This asks the GCS directly.
    from ray._raylet import GcsClient  # type: ignore[attr-defined,unused-ignore]  # a Cython module

    while True:
        try:
            socket.create_connection((host, port), 1).close()
            break
        except OSError:
            time.sleep(INTERVAL)
    client = GcsClient(address=f"{host}:{port}")
    last_error, count = "", -1
    while count < expected:
        try:
            nodes = alive_nodes(client)
        except Exception as error:  # Ray's error types differ between versions; the supervisor has the timeout
            if str(error) != last_error:
                last_error = str(error)
                print(last_error, file=sys.stderr, flush=True)
            nodes = []
        if len(nodes) != count:
            count = len(nodes)
            print(json.dumps({"version": ray.__version__, "nodes": nodes}), flush=True)
        else:
            time.sleep(INTERVAL)
    # Threads of Ray's client may delay a normal exit.
    os._exit(0)


if __name__ == "__main__":
    main()
