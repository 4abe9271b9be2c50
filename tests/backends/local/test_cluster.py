"""Runs on several nodes of this machine: with addresses of their own and without, and what happens if a rank dies."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from skyrl_modal import Launcher, RaySpec, RunResult, RunState, VolumeSpec
from skyrl_modal.backends.local.network import unavailable_reason
from skyrl_modal.backends.local.volume_folder import volume_folder
from skyrl_modal.protocol.state import FailureCause
from tests.conftest import MakeLauncher
from tests.support.other_ray import OTHER_VERSION, other_ray
from tests.support.processes import supervisors, wait_for_marked_processes

pytestmark = pytest.mark.timeout(250)

requires_private_networks = pytest.mark.skipif(
    unavailable_reason() is not None, reason=f"private networks are not available: {unavailable_reason()}"
)


@pytest.fixture
def cluster(launcher: MakeLauncher, checkout: Path) -> MakeLauncher:
    """Return a function that creates launchers of two nodes, by default without Ray."""
    driver = Path(__file__).resolve().parents[2] / "contract" / "cluster_driver.py"
    shutil.copy(driver, checkout / "cluster_driver.py")
    names = (f"cluster-{os.urandom(4).hex()}-{number}" for number in range(100))

    def make(**fields: Any) -> Launcher:
        return launcher(**{"volumes": [VolumeSpec(name=next(names))], "nodes": 2, **fields})

    return make


def wait_for(find: Callable[[], list[Any]]) -> list[Any]:
    """Call a function until its result is not empty. Return the result."""
    deadline = time.monotonic() + 60
    while not (found := find()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return found


class BackgroundRun:
    """A run in a thread, whose command has started."""

    def __init__(self, launcher: Launcher) -> None:
        self._results: list[RunResult] = []
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(launcher,))
        self._thread.start()
        assert self._started.wait(60)

    def _run(self, launcher: Launcher) -> None:
        self._results.append(launcher.run("echo up; sleep 600", output=lambda _: self._started.set(), quiet=True))

    def wait(self) -> RunResult:
        """Wait for the end of the run."""
        self._thread.join(30)
        assert self._results, "the run has not ended"
        return self._results[0]


def nodes_and_addresses(output: io.BytesIO) -> tuple[set[str], set[str]]:
    """Return the ids of the nodes that ran a task, and their addresses."""
    facts = json.loads(output.getvalue())
    return {item["id"] for item in facts}, {item["address"] for item in facts}


@requires_private_networks
@pytest.mark.ray
def test_two_clusters_are_separate(cluster: MakeLauncher) -> None:
    """Two clusters that are active at the same time have two nodes each, and no address in common."""
    outputs = [io.BytesIO(), io.BytesIO()]
    threads = [
        threading.Thread(
            target=cluster(ray=RaySpec(num_cpus=1)).run,
            args=("python cluster_driver.py facts",),
            kwargs={"output": output, "quiet": True},
        )
        for output in outputs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    found = [nodes_and_addresses(output) for output in outputs]
    assert [len(nodes) for nodes, _ in found] == [2, 2]
    assert [len(addresses) for _, addresses in found] == [2, 2]
    assert not found[0][1] & found[1][1]


@pytest.mark.ray
def test_nodes_may_share_this_machines_network(
    cluster: MakeLauncher, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With the variable set to host, the nodes have one address, and a port that is in use is replaced."""
    monkeypatch.setenv("SKYRL_MODAL_LOCAL_NETWORK", "host")
    output = io.BytesIO()
    with socket.socket() as server:
        server.bind(("0.0.0.0", 0))
        server.listen()
        port = server.getsockname()[1]

        cluster(ray=RaySpec(num_cpus=1, port=port)).run("python cluster_driver.py facts", output=output, check=True)

    nodes, addresses = nodes_and_addresses(output)
    assert (len(nodes), len(addresses)) == (2, 1)
    messages = capfd.readouterr().err
    assert "on this machine's network ($SKYRL_MODAL_LOCAL_NETWORK is host)" in messages
    assert f"port {port} is " in messages


@pytest.mark.ray
@pytest.mark.parametrize(("failures", "returncode"), [(1, 0), (2, 125)])
def test_node_that_joins_before_the_head_is_ready(
    cluster: MakeLauncher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failures: int,
    returncode: int,
) -> None:
    """A node that exits since the head is not registered yet is started once more; another exit fails the run."""
    folder = tmp_path / "bin"  # runs see it, since it is on their PATH
    script = f"""import tempfile
tempfile.mkstemp(dir={str(folder)!r}, prefix="joining-")
if sum(name.startswith("joining-") for name in os.listdir({str(folder)!r})) <= {failures}:
    sys.exit("No node info found for head node in GCS")"""
    other_ray(folder, script)
    (folder / "python").symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))

    result = cluster(ray=RaySpec(num_cpus=1)).run("true", quiet=True)

    assert result.returncode == returncode
    assert len(list(folder.glob("joining-*"))) == 2
    assert (result.cause is None) == (returncode == 0)


@pytest.mark.ray
def test_nodes_without_namespaces_share_the_network(cluster: MakeLauncher, no_namespaces: None) -> None:
    """Without namespaces a cluster has its two nodes at this machine's address."""
    output = io.BytesIO()

    cluster(ray=RaySpec(num_cpus=1)).run(
        "cd $SKYRL_REPO_ROOT && python cluster_driver.py facts", output=output, check=True, quiet=True
    )

    nodes, addresses = nodes_and_addresses(output)
    assert (len(nodes), len(addresses)) == (2, 1)


@pytest.mark.ray
def test_another_ray_version_on_a_node_fails_the_run(
    cluster: MakeLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node with another version of Ray fails the run. The detail names the rank and has the message of Ray."""
    folder = other_ray(tmp_path / "bin", OTHER_VERSION)
    (folder / "python").symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))

    result = cluster(ray=RaySpec(num_cpus=1)).run("echo never", quiet=True)

    assert (result.state, result.returncode) == (RunState.FAILED, 125)
    assert result.cause is FailureCause.RAY_NOT_READY
    assert result.detail.startswith("rank 1 (")
    assert "Version mismatch" in result.detail


def test_failed_head_ends_ranks_that_have_not_connected(
    cluster: MakeLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If rank 0 fails before the others have connected to it, they exit with it, long before the start's timeout."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ray").write_text("#!/bin/sh\necho broken\nexit 3\n")
    (tmp_path / "bin" / "ray").chmod(0o755)
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))

    result = cluster(nodes=3, ray=RaySpec(start_timeout=400)).run("echo never", quiet=True)

    assert (result.state, result.returncode) == (RunState.FAILED, 125)
    assert result.cause is FailureCause.RAY_NOT_READY
    assert result.duration < 100
    assert supervisors() == {0: [], 1: []}


def test_a_killed_rank_fails_the_run(cluster: MakeLauncher) -> None:
    """A run whose rank is killed fails, and its command is stopped."""
    running = BackgroundRun(cluster())
    [pid] = supervisors()[1]

    os.kill(pid, signal.SIGKILL)

    result = running.wait()
    assert (result.state, result.returncode) == (RunState.FAILED, 143)
    assert result.cause is FailureCause.RANK_LOST
    assert result.detail.startswith("lost the connection to rank 1 (")


def test_ranks_exit_with_an_unreached_rank_0(cluster: MakeLauncher) -> None:
    """A rank exits if rank 0 is killed before the rank has connected to it, and does not wait for a timeout."""
    launcher = cluster()
    runs = volume_folder(launcher.volumes[0].name) / ".skyrl_modal" / "runs"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(launcher.run, "echo never", quiet=True)
        [other] = wait_for(lambda: supervisors()[1])
        os.kill(other, signal.SIGSTOP)
        wait_for(lambda: list(runs.glob("*/state.json")))
        [head] = supervisors()[0]
        os.kill(head, signal.SIGKILL)
        os.kill(other, signal.SIGCONT)

        result = running.result(60)  # the rank would otherwise try to connect for two minutes

    assert (result.state, result.cause) == (RunState.LOST, FailureCause.SUPERVISOR_DIED)
    assert supervisors() == {0: [], 1: []}


def test_the_death_of_rank_0_ends_all_ranks(cluster: MakeLauncher) -> None:
    """If rank 0 is killed, the run is lost and all other ranks exit."""
    running = BackgroundRun(cluster(nodes=4))
    assert len(supervisors()[1]) == 3
    [pid] = supervisors()[0]

    os.kill(pid, signal.SIGKILL)

    result = running.wait()
    assert (result.state, result.cause) == (RunState.LOST, FailureCause.SUPERVISOR_DIED)
    assert supervisors() == {0: [], 1: []}


def test_the_death_of_the_caller_ends_all_ranks(checkout: Path) -> None:
    """If the caller that owns a run is killed, all processes of all ranks exit."""
    code = (
        "import sys; from skyrl_modal import Launcher; "
        "Launcher(backend='local', checkout=sys.argv[1], nodes=3, ray=None, volumes=[]).run('echo up; sleep 600')"
    )
    value = os.urandom(8).hex()
    env = {**os.environ, "SKYRL_MODAL_TEST_SESSION": value}
    caller = subprocess.Popen([sys.executable, "-c", code, str(checkout)], stdout=subprocess.PIPE, env=env)
    assert caller.stdout is not None
    assert caller.stdout.readline() == b"up\n"

    caller.kill()

    caller.communicate()
    assert wait_for_marked_processes(value, 20) == {}


@requires_private_networks
def test_a_cluster_can_start_right_after_another(cluster: MakeLauncher) -> None:
    """A cluster can start while the kernel still removes the interfaces of the previous one."""
    assert cluster(nodes=3).run("true", quiet=True).succeeded
    assert cluster(nodes=3).run("true", quiet=True).succeeded
