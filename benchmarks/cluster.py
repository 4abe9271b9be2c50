"""Measure clusters and parallel runs on one machine: ``nox -s bench -- cluster``.

Measures the time until a driver has a cluster of 1, 2 and 4 nodes, compared to a script that calls `ray start` for each
node; and the time and memory of eight parallel runs, each with its own Ray, compared to a single run.
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

from local import BIN, Group, Measure, free_port, kill_by_argument, use_scratch_folders

from skyrl_modal import Launcher, RaySpec, VolumeSpec

#: A driver that waits for a number of nodes and runs a task on each.
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

#: A driver that runs a task and prints the memory of the run's processes, in which shared pages count once (PSS).
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
    """Return a launcher whose nodes have one CPU each."""
    volumes = [VolumeSpec(name=f"bench-{number}")]
    ray = RaySpec(num_cpus=1, start_timeout=600)
    return Launcher(backend="local", checkout=checkout, gpu=None, nodes=nodes, volumes=volumes, ray=ray)


def launcher_cluster(checkout: Path, nodes: int) -> Measure:
    """Return a measurement from the call of Launcher.run until its driver has run a task on every node."""

    def measure() -> float:
        first: list[float] = []
        begin = time.perf_counter()
        command = f"{sys.executable} {checkout}/driver.py {nodes} && echo"
        result = launcher(checkout, nodes).run(command, output=lambda _: first.append(time.perf_counter()), quiet=True)
        if result.returncode:
            raise SystemExit(f"a run failed: {result.detail}\n{result.log_tail}")
        return first[0] - begin

    return measure


def scripted_cluster(checkout: Path, nodes: int) -> Measure:
    """Return a measurement from the first `ray start` of a head and workers until the same driver has finished."""

    def measure() -> float:
        folder, port = tempfile.mkdtemp(prefix="bench-ray-"), free_port()
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
        lean = ["--num-cpus=1", "--disable-usage-stats"]
        head = ["--head", f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false"]
        begin = time.perf_counter()
        try:
            for options in [head, *[[f"--address=127.0.0.1:{port}"]] * (nodes - 1)]:
                subprocess.run([str(BIN / "ray"), "start", *options, *lean], check=True, **quiet)  # type: ignore[call-overload]  # options of any kind
            env = {**os.environ, "RAY_ADDRESS": f"127.0.0.1:{port}"}
            subprocess.run([sys.executable, str(checkout / "driver.py"), str(nodes)], check=True, env=env)
            return time.perf_counter() - begin
        finally:
            kill_by_argument(folder)
            shutil.rmtree(folder, ignore_errors=True)

    return measure


def clusters(checkout: Path, rounds: int) -> list[Group]:
    """Return the groups that compare the start of clusters."""
    groups = []
    for nodes in (1, 2, 4):
        group = Group(f"{nodes} node(s), until a driver has run a task on each")
        group.add("Launcher.run", launcher_cluster(checkout, nodes), rounds=rounds)
        group.add("`ray start` for each node, sequentially", scripted_cluster(checkout, nodes), rounds=rounds)
        groups.append(group)
    return groups


def measure_parallel_runs(checkout: Path, count: int) -> str:
    """Make parallel runs, and return a line with the seconds and MB of each."""
    measured: list[dict[str, float]] = []
    failed: list[str] = []

    def run(number: int) -> None:
        output: list[bytes] = []
        begin = time.perf_counter()
        command = f"{sys.executable} {checkout}/memory.py"
        result = launcher(checkout, number=number).run(command, output=output.append, quiet=True)
        if result.returncode:
            failed.append(f"{result.detail}\n{result.log_tail}")
            return
        measured.append({**json.loads(b"".join(output)), "seconds": time.perf_counter() - begin})

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(measured) != count:
        raise SystemExit("\n".join(["some runs failed:", *failed]))
    seconds, memory = ([item[name] for item in measured] for name in ("seconds", "mb"))
    return (
        f"  {count} in parallel: median {statistics.median(seconds):8.1f} s ({min(seconds):.1f}-{max(seconds):.1f}), "
        f"{max(seconds) / count:6.1f} s in total per run, {statistics.median(memory):6.0f} MB per run"
    )


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each candidate (default: 3)")
    parser.add_argument("--only", choices=["nodes", "runs"], help="measure this only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        scratch = Path(name)
        checkout = use_scratch_folders(scratch)
        # Of /tmp, a run sees only paths in environment variables.
        os.environ["BENCH_CHECKOUT"] = str(scratch / "SkyRL")
        (checkout / "driver.py").write_text(DRIVER)
        (checkout / "memory.py").write_text(MEMORY)
        groups = clusters(checkout, options.rounds) if options.only != "runs" else []
        for group in groups:
            group.run()
        lines = [row for group in groups for row in group.rows()]
        if options.only != "nodes":
            lines += ["runs with Ray, from the call to the result"]
            lines += [measure_parallel_runs(checkout, count) for count in (1, 8)]
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
