"""Program that the cluster tests run in the container. It uses Ray only, and is copied into the checkout."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

VARIABLES = (
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
    """Return facts about the node of the task, and write a file to the volume."""
    context = ray.get_runtime_context()
    rank = os.environ["NODE_RANK"]
    pathlib.Path(data, f"from-rank-{rank}").write_text(context.get_node_id())
    variables = {name: os.environ.get(name) for name in VARIABLES}
    return {"id": context.get_node_id(), "address": ray.util.get_node_ip_address(), "here": os.getcwd(), **variables}


def find_raylets() -> list[int]:
    """Return the process ids of all raylets: of this node's, since the rank has a process namespace of its own."""
    entries = [entry for entry in pathlib.Path("/proc").iterdir() if entry.name.isdigit()]
    return [int(entry.name) for entry in entries if os.path.basename(os.path.realpath(entry / "exe")) == "raylet"]


def kill_raylet() -> None:
    """Kill this node's raylet."""
    for pid in find_raylets():
        os.kill(pid, signal.SIGKILL)


def stop_ray() -> None:
    """Call `ray stop`, unless it would end the Ray of other runs as well."""
    assert len(find_raylets()) == 1
    subprocess.run(["ray", "stop"], check=False)


def write_file(path: str) -> None:
    """Write a file of 3 MB."""
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(path).write_bytes(os.urandom(3_000_000))


def on_node(node_id: str, function, *arguments):
    """Call a function as a task on a node, and return the reference of its result."""
    strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(function).options(scheduling_strategy=strategy, num_cpus=0, max_retries=0).remote(*arguments)


def node_of_rank(rank: int) -> str:
    """Return the node id of a rank."""
    return next(node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeName"] == f"rank-{rank}")


@ray.remote(num_cpus=0)
class Leftover:
    """A detached actor, which continues after its driver has exited."""

    def ping(self) -> str:
        return "pong"


def main() -> None:
    """Execute the task that the first argument names."""
    task, *arguments = sys.argv[1:]
    ray.init(logging_level="ERROR", namespace="test")
    if task == "facts":
        alive = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        print(json.dumps(ray.get([on_node(node, facts, os.environ["SKYRL_DATA"]) for node in alive])), flush=True)
    elif task == "kill":
        if os.environ["SKYRL_ATTEMPT"] == "1":
            Leftover.options(name="leftover", lifetime="detached").remote()
            on_node(node_of_rank(int(arguments[0])), kill_raylet)
            print("killed", flush=True)
            time.sleep(600)
        names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
        print("nodes", len([node for node in ray.nodes() if node["Alive"]]), "of", len(ray.nodes()), "actors", names)
    elif task == "stop":
        on_node(node_of_rank(int(arguments[0])), stop_ray)
        time.sleep(600)
    elif task == "write":
        ray.get([on_node(node_of_rank(rank), write_file, f"{arguments[0]}-{rank}/model.bin") for rank in range(2)])
    elif task == "outlive":
        lost = node_of_rank(1)
        on_node(lost, kill_raylet)
        while any(node["NodeID"] == lost and node["Alive"] for node in ray.nodes()):
            time.sleep(0.2)
        print("lost", flush=True)
        while sum(node["Alive"] for node in ray.nodes()) < 2:
            time.sleep(0.2)
        print("back as", ray.get(on_node(node_of_rank(1), lambda: os.environ["NODE_RANK"])), flush=True)
    elif task == "wait":
        print("up", flush=True)
        try:
            time.sleep(600)
        except KeyboardInterrupt:
            # All nodes still run while a stopped command saves.
            print("saved on", ray.get(on_node(node_of_rank(1), lambda: os.environ["NODE_RANK"])), flush=True)
            sys.exit(5)


main()
