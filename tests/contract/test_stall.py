"""Attempts without output and without a new step."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path

import pytest

from skyrl_modal import Launcher, MountSpec, RaySpec
from skyrl_modal.protocol.state import FailureCause, RunState

STUCK = """
import threading, time

def wait_for_collective():
    threading.Event().wait()

threading.Thread(target=wait_for_collective, daemon=True).start()
print("started", flush=True)
time.sleep(1000)
"""


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "stuck.py").write_text(textwrap.dedent(STUCK))
    return folder


def make_launcher(backend: str, scripts: Path, **fields: object) -> Launcher:
    mounts = [MountSpec(local_path=scripts, remote_path="/root/scripts")]
    values = {"gpu": None, "ray": None, "stall": 2, "grace": 1, "workdir": "/root/scripts", "timeout": "5m"}
    return Launcher(backend=backend, mounts=mounts, **{**values, **fields})  # type: ignore[arg-type]  # see Launcher


def test_stalled_attempt_ends_with_the_stacks_of_its_processes(backend: str, scripts: Path) -> None:
    """A command that writes nothing is ended as timed out, and the output has the stacks of each thread."""
    output = io.BytesIO()

    result = make_launcher(backend, scripts).run("python stuck.py & wait; true", quiet=True, output=output)

    assert (result.state, result.returncode) == (RunState.TIMED_OUT, 124)
    assert (result.cause, result.attempts) == (FailureCause.STALLED, 1)
    assert "neither output nor a new step for 2 s" in result.detail
    text = output.getvalue().decode()
    assert "python stuck.py" in text
    assert 'stuck.py", line 5 in wait_for_collective' in text
    assert 'stuck.py", line 9 in <module>' in text
    assert "processes without Python stacks:" in text


def test_each_stalled_attempt_uses_a_retry(backend: str, scripts: Path) -> None:
    """The next attempt starts if a retry is left, and may succeed."""
    command = 'echo attempt $SKYRL_ATTEMPT; [ "$SKYRL_ATTEMPT" = 2 ] || exec python stuck.py'

    result = make_launcher(backend, scripts, retries=1).run(command, quiet=True)

    assert (result.state, result.attempts) == (RunState.SUCCEEDED, 2)


def test_output_is_activity(backend: str, scripts: Path) -> None:
    """A command that writes from time to time is not stalled, however long it takes."""
    command = "for i in 1 2 3 4 5 6 7; do echo $i; sleep 0.7; done; exit 3"

    result = make_launcher(backend, scripts).run(command, quiet=True)

    assert (result.state, result.returncode, result.cause) == (RunState.FAILED, 3, FailureCause.COMMAND_FAILED)


def test_metrics_are_activity(backend: str, scripts: Path) -> None:
    """A script that logs metrics and writes no output is not stalled."""
    (scripts / "silent.py").write_text(
        textwrap.dedent("""
        import time
        import skyrl_modal

        for step in range(7):
            skyrl_modal.log_metrics({"reward": step / 7}, step=step)
            time.sleep(0.7)
        """)
    )

    result = make_launcher(backend, scripts).run("python silent.py", quiet=True)

    assert (result.state, result.returncode) == (RunState.SUCCEEDED, 0)


@pytest.mark.ray
def test_stacks_of_all_ranks(backend: str, scripts: Path) -> None:
    """The stacks of Ray's workers on every node are in the output, and kept with the logs of their rank."""
    (scripts / "driver.py").write_text(
        textwrap.dedent("""
        import ray, time

        @ray.remote(num_cpus=1)
        def wait_on_a_node():
            time.sleep(1000)

        ray.init()
        print("nodes", len(ray.nodes()), flush=True)
        nodes = [node["NodeID"] for node in ray.nodes()]
        strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        ray.get([wait_on_a_node.options(scheduling_strategy=strategy(node, soft=False)).remote() for node in nodes])
        """)
    )
    gpu = None if backend == "local" else "H100:8"
    launcher = make_launcher(backend, scripts, nodes=2, ray=RaySpec(num_cpus=2), stall=8, gpu=gpu)

    output = io.BytesIO()

    result = launcher.run("python driver.py", quiet=True, output=output)

    assert result.cause is FailureCause.STALLED
    first, second = output.getvalue().decode().partition("stacks of rank 0:")[2].split("stacks of rank 1:")
    for text in (first, second):
        assert 'driver.py", line 6 in wait_on_a_node' in text
