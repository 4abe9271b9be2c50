"""Program that the tests of the working directory run in the container. It uses Ray only, and is copied there."""

import json
import os
import pathlib

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def use_relative_paths(name: str) -> dict[str, str]:
    """Read and write a file by relative paths, and return what was found."""
    rank = os.environ["NODE_RANK"]
    pathlib.Path(f"{name}-{rank}.txt").write_text("written")
    content = pathlib.Path("input.txt").read_text() if pathlib.Path("input.txt").exists() else ""
    absolute = pathlib.Path(os.getcwd(), f"{name}-{rank}.txt").read_text()
    return {"rank": rank, "where": os.getcwd(), "read": content, "written": absolute}


@ray.remote(num_cpus=0)
class Worker:
    """An actor."""

    def use_relative_paths(self, name: str) -> dict[str, str]:
        """Do so in the actor's process."""
        return use_relative_paths(name)


def main() -> None:
    """Print the facts of a task, an actor and a detached actor on every node."""
    ray.init(logging_level="ERROR", namespace="test", runtime_env=json.loads(os.environ.get("RUNTIME_ENV", "{}")))
    facts = []
    for node in ray.nodes():
        options = {"scheduling_strategy": NodeAffinitySchedulingStrategy(node["NodeID"], soft=False), "num_cpus": 0}
        facts.append(ray.get(ray.remote(use_relative_paths).options(**options).remote("task")))
        for name, more in (("actor", {}), ("detached", {"name": node["NodeID"], "lifetime": "detached"})):
            actor = Worker.options(**options, **more).remote()
            facts.append(ray.get(actor.use_relative_paths.remote(name)))
            ray.kill(actor)
    print(json.dumps({"driver": os.getcwd(), "facts": facts}), flush=True)


main()
