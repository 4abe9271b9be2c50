"""Several nodes on this machine: with addresses of their own and without, and what is left when a rank dies."""

from __future__ import annotations

import io
import json
import os
import re
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

import platformdirs
import pytest

from skyrl_modal import Launcher, RaySpec, RunResult, RunState, VolumeSpec
from skyrl_modal.backends.local.network import cannot
from tests.support.other_ray import OTHER_VERSION, other_ray
from tests.support.processes import supervisors, wait_for_none

pytestmark = pytest.mark.timeout(250)

OWN_ADDRESSES = pytest.mark.skipif(cannot() is not None, reason=f"no private networks here: {cannot()}")


@pytest.fixture
def cluster(checkout: Path) -> Callable[..., Launcher]:
    """Makes launchers of two nodes with a CPU each, without Ray unless said otherwise."""
    driver = Path(__file__).resolve().parents[2] / "contract" / "cluster_driver.py"
    shutil.copy(driver, checkout / "cluster_driver.py")
    names = (f"cluster-{os.urandom(4).hex()}-{number}" for number in range(100))

    def make(**fields: Any) -> Launcher:
        volumes = [VolumeSpec(name=next(names))]
        return Launcher(
            **{"backend": "local", "checkout": checkout, "volumes": volumes, "nodes": 2, "ray": None, **fields}
        )

    return make


def until(look: Callable[[], list[Any]]) -> list[Any]:
    """What is found, as soon as something is."""
    deadline = time.monotonic() + 60
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return found


class Running:
    """A run in a thread of its own, whose command has said something."""

    def __init__(self, launcher: Launcher) -> None:
        self._results: list[RunResult] = []
        self._said = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(launcher,))
        self._thread.start()
        assert self._said.wait(60)

    def _run(self, launcher: Launcher) -> None:
        self._results.append(launcher.run("echo up; sleep 600", output=lambda _: self._said.set(), quiet=True))

    def wait(self) -> RunResult:
        self._thread.join(30)
        assert self._results, "the run has not ended"
        return self._results[0]


def addresses(output: io.BytesIO) -> tuple[set[str], set[str]]:
    facts = json.loads(output.getvalue())
    return {item["id"] for item in facts}, {item["address"] for item in facts}


@OWN_ADDRESSES
@pytest.mark.ray
def test_two_clusters_side_by_side_do_not_meet(cluster: Callable[..., Launcher]) -> None:
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

    found = [addresses(output) for output in outputs]
    assert [len(ids) for ids, _ in found] == [2, 2]
    assert [len(at) for _, at in found] == [2, 2]
    assert not found[0][1] & found[1][1]


@pytest.mark.ray
def test_nodes_may_share_this_machines_network(
    cluster: Callable[..., Launcher], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SKYRL_MODAL_LOCAL_NETWORK", "host")
    output = io.BytesIO()
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]

        cluster(ray=RaySpec(num_cpus=1, port=port)).run("python cluster_driver.py facts", output=output, check=True)

    ids, at = addresses(output)
    assert (len(ids), len(at)) == (2, 1)
    said = capfd.readouterr().err
    assert "side by side on its network ($SKYRL_MODAL_LOCAL_NETWORK is host)" in said
    assert f"port {port} is taken" in said


@pytest.mark.ray
def test_nodes_without_namespaces(
    cluster: Callable[..., Launcher], no_namespaces: None, capfd: pytest.CaptureFixture[str]
) -> None:
    output = io.BytesIO()

    cluster(ray=RaySpec(num_cpus=1)).run(
        "cd $SKYRL_REPO_ROOT && python cluster_driver.py facts", output=output, check=True
    )

    assert len(addresses(output)[0]) == 2
    assert "side by side on its network (there are no namespaces)" in capfd.readouterr().err


@pytest.mark.ray
def test_another_ray_on_a_node_is_told_in_rays_words(
    cluster: Callable[..., Launcher], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = other_ray(tmp_path / "bin", OTHER_VERSION)
    (folder / "python").symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))

    result = cluster(ray=RaySpec(num_cpus=1)).run("echo never", quiet=True)

    assert (result.state, result.returncode) == (RunState.FAILED, 125)
    assert re.match(r"rank 1 \([\d.]+\): its Ray node ended with exit code 1:\n", result.detail)
    assert "Version mismatch" in result.detail


def test_ranks_that_are_on_their_way_hear_of_an_end_that_came_before_them(
    cluster: Callable[..., Launcher], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ray").write_text("#!/bin/sh\necho broken\nexit 3\n")
    (tmp_path / "bin" / "ray").chmod(0o755)
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))

    # The head ends before the others can have joined: they would wait for it until start_timeout.
    result = cluster(nodes=3, ray=RaySpec(start_timeout=400)).run("echo never", quiet=True)

    assert (result.state, result.returncode) == (RunState.FAILED, 125)
    assert "`ray start` ended with exit code 3. Its last words:" in result.detail
    assert result.duration < 100
    assert supervisors() == {0: [], 1: []}


def test_a_rank_that_is_killed_fails_the_run(cluster: Callable[..., Launcher]) -> None:
    running = Running(cluster())
    [pid] = supervisors()[1]

    os.kill(pid, signal.SIGKILL)

    result = running.wait()
    assert (result.state, result.returncode) == (RunState.FAILED, 143)
    assert re.match(r"rank 1 \([\d.]+\): it is gone", result.detail)


def test_ranks_end_with_a_rank_0_that_they_have_not_reached(cluster: Callable[..., Launcher]) -> None:
    made = cluster()
    runs = platformdirs.user_data_path("skyrl_modal") / "volumes" / made.volumes[0].name / ".skyrl_modal" / "runs"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(made.run, "echo never", quiet=True)
        [other] = until(lambda: supervisors()[1])
        os.kill(other, signal.SIGSTOP)
        until(lambda: list(runs.glob("*/state.json")))
        [first] = supervisors()[0]
        os.kill(first, signal.SIGKILL)
        os.kill(other, signal.SIGCONT)

        result = running.result(60)  # they would look for it for two minutes

    assert result.state is RunState.LOST
    assert supervisors() == {0: [], 1: []}


def test_the_death_of_rank_0_ends_all(cluster: Callable[..., Launcher]) -> None:
    running = Running(cluster(nodes=4))
    assert len(supervisors()[1]) == 3
    [pid] = supervisors()[0]

    os.kill(pid, signal.SIGKILL)

    assert running.wait().state is RunState.LOST
    assert supervisors() == {0: [], 1: []}


def test_a_caller_that_is_killed_takes_all_ranks_along(checkout: Path) -> None:
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
    assert wait_for_none(value, 20) == {}


@OWN_ADDRESSES
def test_the_next_cluster_can_be_had_at_once(cluster: Callable[..., Launcher]) -> None:
    assert cluster(nodes=3).run("true", quiet=True).succeeded
    # The interfaces of the first go shortly after the last process that could use them.
    assert cluster(nodes=3).run("true", quiet=True).succeeded
