"""What the commands of the cluster tests do; it goes with the checkout, and knows Ray only."""

import json
import os
import pathlib
import signal
import sys
import time

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

SHOWN = (
    "NODE_RANK",
    "NUM_NODES",
    "NUM_GPUS",
    "MASTER_ADDR",
    "MASTER_PORT",
    "SKYRL_RUN_ID",
    "OF_RAY",
    "OF_COMMAND",
    "UV_PROJECT",
    "UV_LOCK_TIMEOUT",
)


def facts(data: str) -> dict[str, object]:
    """A task's own node, as it sees it; leaves a file on the volume."""
    context = ray.get_runtime_context()
    rank = os.environ["NODE_RANK"]
    pathlib.Path(data, f"from-rank-{rank}").write_text(context.get_node_id())
    shown = {name: os.environ.get(name) for name in SHOWN}
    return {"id": context.get_node_id(), "address": ray.util.get_node_ip_address(), "here": os.getcwd(), **shown}


def kill_raylet() -> None:
    """End this node's raylet: in the rank's own process namespace there is no other."""
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit() and os.path.basename(os.path.realpath(entry / "exe")) == "raylet":
            os.kill(int(entry.name), signal.SIGKILL)


def on_node(node_id: str, function, *arguments):
    """Run a function as a task on a node."""
    strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(function).options(scheduling_strategy=strategy, num_cpus=0, max_retries=0).remote(*arguments)


def node_of_rank(rank: int) -> str:
    return next(node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeName"] == f"rank-{rank}")


@ray.remote(num_cpus=0)
class Leftover:
    """A detached actor, which outlives its driver."""

    def ping(self) -> str:
        return "pong"


def main() -> None:
    what, *arguments = sys.argv[1:]
    ray.init(logging_level="ERROR", namespace="test")
    if what == "facts":
        alive = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        print(json.dumps(ray.get([on_node(node, facts, os.environ["SKYRL_DATA"]) for node in alive])), flush=True)
    elif what == "kill":
        if os.environ["SKYRL_ATTEMPT"] == "1":
            Leftover.options(name="leftover", lifetime="detached").remote()
            on_node(node_of_rank(int(arguments[0])), kill_raylet)
            print("killed", flush=True)
            time.sleep(600)
        names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
        print("nodes", len([node for node in ray.nodes() if node["Alive"]]), "of", len(ray.nodes()), "actors", names)
    elif what == "outlive":
        lost = node_of_rank(1)
        on_node(lost, kill_raylet)
        while any(node["NodeID"] == lost and node["Alive"] for node in ray.nodes()):
            time.sleep(0.2)
        print("lost", flush=True)
        while sum(node["Alive"] for node in ray.nodes()) < 2:
            time.sleep(0.2)
        print("back as", ray.get(on_node(node_of_rank(1), lambda: os.environ["NODE_RANK"])), flush=True)
    elif what == "wait":
        print("up", flush=True)
        try:
            time.sleep(600)
        except KeyboardInterrupt:
            # The cluster is still whole while a command that was stopped saves.
            print("saved on", ray.get(on_node(node_of_rank(1), lambda: os.environ["NODE_RANK"])), flush=True)
            sys.exit(5)


main()
