"""The start of Ray: on one node as in SkyRL's scripts, in clusters, and in runs at the same time."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Hashable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.measure import BIN, SUBJECT, BenchmarkError, MissingTool, Row, Sample, children_seconds
from benchmarks.session import Session
from skyrl_modal import Launcher, RaySpec, VolumeSpec

#: A driver that waits for a number of nodes and runs a task on each.
DRIVER = """
import sys, time
import ray
count = int(sys.argv[1])
while True:
    try:
        ray.init(logging_level="ERROR", log_to_driver=False)
        break
    except ConnectionError:
        time.sleep(0.05)
while len([node for node in ray.nodes() if node["Alive"]]) < count:
    time.sleep(0.05)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
@ray.remote(num_cpus=0)
def node():
    return ray.get_runtime_context().get_node_id()
ids = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
found = ray.get([node.options(scheduling_strategy=On(one, soft=False)).remote() for one in ids])
assert sorted(found) == sorted(ids)
print(len(ids), flush=True)
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


def rows(session: Session) -> Iterator[Row]:
    """Yield the rows on Ray."""
    (session.folder / "driver.py").write_text(DRIVER)
    (session.folder / "memory.py").write_text(MEMORY)
    own, script = "ray start --head && echo, as in SkyRL's scripts", "ray start --head: a driver"
    yield Row(
        "ray.echo",
        "Ray of one node, from the start to the output of `echo`",
        {SUBJECT: lambda: launched(session, "echo ready"), own: lambda: started(session, [[]], echo=True)},
        baseline=own,
        share=0.25,
    )
    yield Row(
        "ray.driver",
        "Ray of one node, from the start to the end of a task of a driver",
        {
            SUBJECT: lambda: launched(session, driver(session, 1)),
            script: lambda: started(session, [[]]),
            "ray start --head --include-dashboard=false": lambda: started(session, [["--include-dashboard=false"]]),
        },
        baseline=script,
        share=0.25,
    )
    for nodes in session.sizes.nodes:
        if nodes > 1:
            yield cluster(session, nodes)
    for count in session.sizes.ray_runs:
        title = f"{count} runs with Ray at the same time, from the call to the last result"
        runs = {SUBJECT: partial(parallel, session, count)}
        yield Row(f"ray.runs-{count}", title, runs, kind="seconds", share=0.25)


def cluster(session: Session, nodes: int) -> Row:
    """Return the row on clusters."""
    lean = ["--num-cpus=1", "--disable-usage-stats", "--include-dashboard=false"]
    options = [lean, *[lean[:2]] * (nodes - 1)]
    return Row(
        f"ray.nodes-{nodes}",
        f"Ray of {nodes} nodes, from the start to the end of a task on each",
        {
            SUBJECT: lambda: launched(session, driver(session, nodes), nodes=nodes),
            "`ray start` for each node, one after the other": lambda: started(session, options),
        },
        baseline="`ray start` for each node, one after the other",
        share=0.25,
    )


def driver(session: Session, nodes: int) -> str:
    """Return the command of the driver."""
    return f"{sys.executable} {session.folder}/driver.py {nodes}"


def launched(session: Session, command: str, *, nodes: int = 1) -> Sample:
    """Measure a run from the call to the first output of its command."""
    first: list[float] = []
    output: list[bytes] = []

    def receive(data: bytes) -> None:
        first.append(time.perf_counter())
        output.append(data)

    ray = RaySpec(num_cpus=1 if nodes > 1 else None, start_timeout=600)
    launcher = Launcher(backend="local", checkout=session.checkout, gpu=None, nodes=nodes, ray=ray)
    cpu, begin = children_seconds(), time.perf_counter()
    result = launcher.run(command, output=receive, quiet=True)
    if result.returncode:
        raise BenchmarkError(f"a run failed: {result.detail}\n{result.log_tail}")
    return Sample(first[0] - begin, children_seconds() - cpu, b"".join(output).decode().strip())


def started(session: Session, nodes: list[list[str]], *, echo: bool = False) -> Sample:
    """Measure `ray start` for each node with the given options, until a driver has finished.

    The driver of a single node is started at the same time as Ray. Its way is the one of SkyRL's scripts, whose image
    has ray[default].

    Args:
        session: The session, with the driver.
        nodes: The options of each node.
        echo: Whether to run no driver after the start.
    """
    if importlib.util.find_spec("aiohttp_cors") is None and not session.is_quick:
        raise MissingTool("ray[default] is not installed")
    folder, port = tempfile.mkdtemp(prefix="bench-ray-"), _free_port()
    head = ["--head", f"--port={port}", f"--temp-dir={folder}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    outcome: Hashable = "ready"
    cpu, begin = children_seconds(), time.perf_counter()
    try:
        for number, options in enumerate(nodes):
            place = head if number == 0 else [f"--address=127.0.0.1:{port}"]
            subprocess.run([str(BIN / "ray"), "start", *place, *options], check=True, **quiet)  # type: ignore[call-overload]  # options of any kind
        if not echo:
            argv = [sys.executable, str(session.folder / "driver.py"), str(len(nodes))]
            env = {**os.environ, "RAY_ADDRESS": f"127.0.0.1:{port}"}
            done = subprocess.run(argv, check=True, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            outcome = done.stdout.decode().strip()
        wall = time.perf_counter() - begin
    finally:
        _kill_by_argument(folder)
        shutil.rmtree(folder, ignore_errors=True)
    return Sample(wall, children_seconds() - cpu, outcome)


def parallel(session: Session, count: int) -> Sample:
    """Measure runs with Ray at the same time. The memory is the mean of the runs."""
    memory: list[float] = []
    failed: list[str] = []

    def run(number: int) -> None:
        output: list[bytes] = []
        launcher = Launcher(
            backend="local",
            checkout=session.checkout,
            gpu=None,
            ray=RaySpec(num_cpus=1, start_timeout=600),
            volumes=[VolumeSpec(name=f"bench-{number}")],
        )
        result = launcher.run(f"{sys.executable} {session.folder}/memory.py", output=output.append, quiet=True)
        if result.returncode:
            failed.append(f"{result.detail}\n{result.log_tail}")
        else:
            memory.append(json.loads(b"".join(output))["mb"])

    cpu, begin = children_seconds(), time.perf_counter()
    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - begin
    if failed:
        raise BenchmarkError("\n".join(["some runs failed:", *failed]))
    return Sample(wall, children_seconds() - cpu, count, sum(memory) / count)


def _free_port() -> int:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _kill_by_argument(text: str) -> None:
    """Kill all processes with a text in their arguments: the path of a temporary folder, which no other process has."""
    own_pid = os.getpid()
    for _ in range(50):
        left = []
        for entry in os.scandir("/proc"):
            if entry.name.isdigit() and int(entry.name) != own_pid:
                with contextlib.suppress(OSError):
                    if text.encode() in Path(entry.path, "cmdline").read_bytes():
                        left.append(int(entry.name))
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
