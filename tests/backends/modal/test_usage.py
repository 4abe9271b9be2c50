"""Tests of the counted time of containers, compared with the time that the control plane has measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from skyrl_modal import Launcher, Run, RunResult, RunState, VolumeSpec
from skyrl_modal.protocol.run_folder import read_record
from skyrl_modal.protocol.usage import USAGE_FILE, UsageRecord
from tests.backends.modal.conftest import ActingOutput
from tests.support.loopback import LoopbackModal
from tests.support.loopback.modes import Mode

Make = Callable[..., Launcher]
MakeServer = Callable[..., LoopbackModal]
RATE = 3600.0


def check_cost(server: LoopbackModal, result: RunResult, *, seconds_per_container: float = 0.0) -> None:
    """Check the cost of the only run of a server by the server's own count, after all its containers have exited.

    Args:
        server: The server.
        result: The result of the run.
        seconds_per_container: Seconds of each container that may be missing in a short run: a container is counted
            from the start of its Python process to the end of its function. Otherwise 2 % may be missing.
    """
    server.wait_for_no_container()
    own, containers = server.container_seconds(), server.containers(running=False)
    assert result.cost is not None
    assert abs(result.cost - own) <= max(0.02 * own, seconds_per_container * len(containers)), (result.cost, own)


def stored_usage(server: LoopbackModal, volume: VolumeSpec, run_id: str) -> UsageRecord:
    """Return the record of the usage on the volume."""
    record = read_record(UsageRecord, server.volume(volume.name) / ".skyrl_modal" / "runs" / run_id / USAGE_FILE)
    assert record is not None
    return record


def test_cost_of_attempts(server: LoopbackModal, launcher: Make, volume: VolumeSpec) -> None:
    """A run with several attempts in one container."""
    used = launcher(rate=RATE, retries=2)
    result = used.run("sleep 6; [ $SKYRL_ATTEMPT = 3 ]", quiet=True)

    assert result.attempts == 3
    check_cost(server, result, seconds_per_container=1.5)
    (entry,) = stored_usage(server, volume, result.run_id).containers
    assert (entry.rank, entry.attempt, entry.has_ended, entry.is_estimated) == (0, 3, True, False)


def test_run_without_a_volume(server: LoopbackModal, launcher: Make) -> None:
    """Without a volume, the time of a container that was killed is known by its lease and by the kept records."""
    run = launcher(rate=RATE, retries=1, volumes=[]).submit(waiting_command(3, 2))
    server.wait_for_text("up 1\n")
    time.sleep(5)  # the time of a container, which is what is measured
    server.kill()
    result = run.wait(120)

    assert (result.state, result.attempts) == (RunState.SUCCEEDED, 2)
    check_cost(server, result, seconds_per_container=2)


def waiting_command(seconds: float, last: int) -> str:
    """Return a command that waits in each attempt; the last one succeeds."""
    return f'echo "up $SKYRL_ATTEMPT"; [ $SKYRL_ATTEMPT -lt {last} ] && sleep 600; sleep {seconds}'


def test_killed_container_is_counted(server: LoopbackModal, launcher: Make, volume: VolumeSpec) -> None:
    """A container that was killed is counted until its end, as far as it is known; also while its successor waits."""
    run = launcher(rate=RATE, retries=1).submit(waiting_command(3, 2))
    server.wait_for_text("up 1\n")
    time.sleep(5)  # the time of a container, which is what is measured
    server.kill()
    result = run.wait(120)

    assert (result.state, result.attempts) == (RunState.SUCCEEDED, 2)
    check_cost(server, result, seconds_per_container=2)
    first, second = stored_usage(server, volume, result.run_id).containers
    assert (first.is_estimated, first.attempt, second.is_estimated, second.attempt) == (True, 1, False, 2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_kills_are_counted(server: LoopbackModal, launcher: Make, volume: VolumeSpec, seed: int) -> None:
    """Several kills at other moments."""
    import random

    moments = [random.Random(seed * 10 + number).uniform(15, 30) for number in range(2)]
    run = launcher(rate=RATE, retries=2).submit(waiting_command(30, 3))
    for number, seconds in enumerate(moments, start=1):
        server.wait_for_text(f"up {number}\n", timeout=60)
        time.sleep(seconds)
        server.kill()
    result = run.wait(200)

    assert (result.state, result.attempts) == (RunState.SUCCEEDED, 3)
    check_cost(server, result)


@pytest.mark.slow
def test_preempted_containers_are_counted(
    make_server: MakeServer, checkout: Path, volume: VolumeSpec, tmp_path: Path
) -> None:
    """A container that saves after its preemption, while its successor waits for it, is counted until its end."""
    server = make_server(mode=Mode(replacement_delay=0.8))
    used = Launcher(backend="modal", checkout=checkout, volumes=[volume], ray=None, gpu=None, rate=RATE, grace=20)
    command = (
        "f=$SKYRL_DATA/saved; [ -e $f ] && { sleep 70; exit 0; }; "
        "trap 'sleep 7; touch $f; exit 9' INT; echo up; while :; do sleep 0.1; done"
    )
    result = used.run(command, output=ActingOutput("up\n", server.preempt), quiet=True)

    assert result.succeeded
    check_cost(server, result)
    assert len(stored_usage(server, volume, result.run_id).containers) == 2


def test_budget_over_containers(server: LoopbackModal, launcher: Make, volume: VolumeSpec) -> None:
    """The time of a container that was killed counts for the budget of the next one, and the wait for it too."""
    run = launcher(rate=RATE, retries=5, budget=30, grace=2).submit('echo "up $SKYRL_ATTEMPT"; sleep 600')
    server.wait_for_text("up 1\n")
    server.kill()
    result = run.wait(120)

    assert (result.state, result.returncode) == (RunState.OVER_BUDGET, 124)
    server.wait_for_no_container()
    assert 30 - 2 <= server.container_seconds() < 30 + 2 + 5
    assert Run.attach(run.id).cost == result.cost


def test_nodes_are_counted(server: LoopbackModal, launcher: Make, volume: VolumeSpec) -> None:
    """All nodes of a cluster are counted, each with its own start."""
    result = launcher(rate=RATE, nodes=2, gpu="H100:8").run("sleep 8", quiet=True)

    assert result.succeeded
    check_cost(server, result, seconds_per_container=2)
    entries = stored_usage(server, volume, result.run_id).containers
    assert [(entry.rank, entry.has_ended) for entry in entries] == [(0, True), (1, True)]


@pytest.mark.slow
def test_restarted_cluster_is_counted(server: LoopbackModal, launcher: Make, volume: VolumeSpec) -> None:
    """A cluster that starts again after a container was killed is counted with its four containers."""
    run = launcher(rate=RATE, nodes=2, gpu="H100:8", retries=1).submit(waiting_command(60, 2))
    server.wait_for_text("up 1\n")
    time.sleep(30)
    server.kill(server.containers()[1])
    result = run.wait(250)

    assert (result.state, result.attempts) == (RunState.SUCCEEDED, 2)
    check_cost(server, result)
    assert len(stored_usage(server, volume, result.run_id).containers) == 4


def test_budget_of_a_cluster(server: LoopbackModal, launcher: Make) -> None:
    """The budget is used up by all nodes together."""
    result = launcher(rate=RATE, nodes=2, gpu="H100:8", budget=24, grace=2).run("sleep 600", quiet=True)

    assert (result.state, result.returncode) == (RunState.OVER_BUDGET, 124)
    server.wait_for_no_container()
    assert 24 <= server.container_seconds() < 24 + 2 * (2 + 5)
