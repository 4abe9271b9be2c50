"""Several Ray nodes and several runs on one machine, all in one run: ``nox -s bench -- cluster``.

Two questions: how soon a driver has a cluster of 1, 2 and 4 nodes, beside `ray start` by hand as one would script it;
and what eight runs at once, each with a Ray of its own, cost beside one alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from local import BIN, Group, Measure, end_by_argument, free_port, own_folders

from skyrl_modal import Launcher, RaySpec, VolumeSpec

#: A driver that waits for so many nodes and has a task run on each.
DRIVER = """
import sys, time
import ray
count = int(sys.argv[1])
ray.init(logging_level="ERROR", log_to_driver=False)
while len([node for node in ray.nodes() if node["Alive"]]) < count:
    time.sleep(0.05)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
@ray.remote(num_cpus=0)
def node():
    return ray.get_runtime_context().get_node_id()
ids = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
found = ray.get([node.options(scheduling_strategy=On(one, soft=False)).remote() for one in ids])
assert sorted(found) == sorted(ids) and len(ids) == count
"""

#: A driver that does a task and tells how much memory the processes of its run have, each shared page told once (PSS).
MEMORY = """
import json, os
import ray
ray.init(logging_level="ERROR", log_to_driver=False)
node = ray.remote(lambda: ray.get_runtime_context().get_node_id())
assert ray.get(node.remote()) == ray.nodes()[0]["NodeID"] and len(ray.nodes()) == 1
pss = 0
for entry in os.scandir("/proc"):
    if entry.name.isdigit():
        try:
            with open(entry.path + "/smaps_rollup") as file:
                pss += sum(int(line.split()[1]) for line in file if line.startswith("Pss:"))
        except OSError:
            pass
print(json.dumps({"mb": pss / 1024}))
"""


def launcher(checkout: Path, nodes: int = 1, number: int = 0) -> Launcher:
    """A launcher whose nodes have a CPU each."""
    volumes = [VolumeSpec(name=f"bench-{number}")]
    ray = RaySpec(num_cpus=1, start_timeout=600)
    return Launcher(backend="local", checkout=checkout, gpu=None, nodes=nodes, volumes=volumes, ray=ray)


def ours(checkout: Path, nodes: int) -> Measure:
    """Measures from the call until the command's driver has seen every node; the end is not in it."""

    def measure() -> float:
        first: list[float] = []
        begin = time.perf_counter()
        command = f"{sys.executable} {checkout}/driver.py {nodes} && echo"
        result = launcher(checkout, nodes).run(command, output=lambda _: first.append(time.perf_counter()), quiet=True)
        if result.returncode:
            raise SystemExit(f"a run failed: {result.detail}\n{result.log_tail}")
        return first[0] - begin

    return measure


def by_hand(checkout: Path, nodes: int) -> Measure:
    """Measures a head and workers by `ray start`, one after the other, until the same driver is done."""

    def measure() -> float:
        folder, port = tempfile.mkdtemp(prefix="bench-ray-"), free_port()
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
        lean = ["--num-cpus=1", "--disable-usage-stats"]
        head = ["--head", f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false"]
        begin = time.perf_counter()
        try:
            for what in [head, *[[f"--address=127.0.0.1:{port}"]] * (nodes - 1)]:
                subprocess.run([str(BIN / "ray"), "start", *what, *lean], check=True, **quiet)  # type: ignore[call-overload]  # options of any kind
            env = {**os.environ, "RAY_ADDRESS": f"127.0.0.1:{port}"}
            subprocess.run([sys.executable, str(checkout / "driver.py"), str(nodes)], check=True, env=env)
            return time.perf_counter() - begin
        finally:
            end_by_argument(folder)
            shutil.rmtree(folder, ignore_errors=True)

    return measure


def clusters(checkout: Path, rounds: int) -> list[Group]:
    """How soon a driver has its nodes."""
    groups = []
    for nodes in (1, 2, 4):
        group = Group(f"{nodes} node(s), until a driver has had a task on each")
        group.add("Launcher.run", ours(checkout, nodes), rounds=rounds)
        group.add("`ray start` for each node, one after the other", by_hand(checkout, nodes), rounds=rounds)
        groups.append(group)
    return groups


def at_once(checkout: Path, count: int) -> str:
    """Runs at the same time: seconds and MB of each."""
    told: list[dict[str, float]] = []
    failed: list[str] = []

    def run(number: int) -> None:
        output: list[bytes] = []
        begin = time.perf_counter()
        command = f"{sys.executable} {checkout}/memory.py"
        result = launcher(checkout, number=number).run(command, output=output.append, quiet=True)
        if result.returncode:
            failed.append(f"{result.detail}\n{result.log_tail}")
            return
        told.append({**json.loads(b"".join(output)), "seconds": time.perf_counter() - begin})

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(told) != count:
        raise SystemExit("\n".join(["not all runs were right:", *failed]))
    seconds, memory = ([item[name] for item in told] for name in ("seconds", "mb"))
    return (
        f"  {count} at once: {statistics.median(seconds):8.1f} s each ({min(seconds):.1f}-{max(seconds):.1f}), "
        f"{max(seconds) / count:6.1f} s for each of them, {statistics.median(memory):6.0f} MB each"
    )


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="of each candidate (3)")
    parser.add_argument("--only", choices=["nodes", "runs"], help="one question")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        scratch = Path(name)
        checkout = own_folders(scratch)
        # Named by the environment: the run sees of /tmp only what that names.
        os.environ["BENCH_CHECKOUT"] = str(scratch / "SkyRL")
        (checkout / "driver.py").write_text(DRIVER)
        (checkout / "memory.py").write_text(MEMORY)
        groups = clusters(checkout, options.rounds) if options.only != "runs" else []
        for group in groups:
            group.run()
        lines = [row for group in groups for row in group.rows()]
        if options.only != "nodes":
            lines += ["a run with a Ray of its own, from the call to its result"]
            lines += [at_once(checkout, count) for count in (1, 8)]
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
