"""Tests of clusters on Modal: containers that die, are preempted, or lack what was requested."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skyrl_modal import Launcher, RaySpec, Run, RunState, SpecError
from skyrl_modal.protocol.state import FailureCause
from tests.backends.modal.conftest import requests_for_run
from tests.support.loopback import LoopbackModal
from tests.support.loopback.records import Container
from tests.support.other_ray import OTHER_VERSION, other_ray

Make = Callable[..., Launcher]


@pytest.fixture
def cluster(launcher: Make) -> Make:
    """Return a function that creates launchers with two nodes, by default without Ray."""

    def make(**fields: Any) -> Launcher:
        return launcher(**{"nodes": 2, "gpu": "H100:8", **fields})

    return make


def container_of(server: LoopbackModal, rank: int) -> Container:
    """Return the container of a rank."""
    [gang] = {id(c.gang): c.gang for c in server.containers()}.values()
    member: Container = gang.members[rank]
    return member


def with_ray(folder: Path) -> dict[str, list[Path]]:
    """Return options of a server whose containers use the ``ray`` in a folder."""
    return {"container_path": [folder], "visible": [folder]}


# -- before the start ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "field", "value", "remedy"),
    [
        ({"gpu": None}, "gpu", None, "H100:8"),
        ({"gpu": "H100:4"}, "gpu", "H100:4", "H100:8, or one node"),
        ({"gpu": ["H100:8", "B200:2"]}, "gpu", "B200:2", "B200:8"),
        ({"gpu": "h200:7"}, "gpu", "H200:7", "H200:8"),
        ({"nodes": 33}, "nodes", 33, "up to 32"),
    ],
)
def test_impossible_cluster_is_refused(
    server: LoopbackModal, cluster: Make, fields: dict[str, Any], field: str, value: object, remedy: str
) -> None:
    """A cluster that Modal does not offer is refused before any request for it, with a cluster that it offers."""
    with pytest.raises(SpecError) as caught:
        cluster(**fields).run("true")

    assert (caught.value.field, caught.value.value) == (field, value)
    assert remedy in caught.value.remedy
    assert requests_for_run(server) == []


def test_modals_refusal_is_reported(server: LoopbackModal, cluster: Make, capfd: pytest.CaptureFixture[str]) -> None:
    """A number of GPUs that is not known to be wrong is warned about, and Modal's reason is in the error."""
    with pytest.raises(SpecError) as caught:
        cluster(gpu="A10:3").run("true")

    assert "how many GPUs of type A10 each node" in " ".join(capfd.readouterr().err.split())
    assert "must request all GPUs of their hosts" in caught.value.remedy


@pytest.mark.parametrize("rdma", [False, True])
def test_cluster_network_is_requested(server: LoopbackModal, cluster: Make, rdma: bool) -> None:
    """A cluster has the network between containers, and the fast network for GPUs if it was requested."""
    cluster(rdma=rdma).run("true", quiet=True, check=True)

    [create] = server.calls("FunctionCreate")
    assert create.request.function.i6pn_enabled
    assert create.request.function._experimental_group_size == 2
    assert create.request.function.resources.rdma == rdma


# -- during the start ------------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_node_without_its_gpus_fails_the_start(server: LoopbackModal, cluster: Make) -> None:
    """A node with fewer GPUs than requested fails the run before its command, and is named."""
    server.faults.lost_gpus[1] = 3

    result = cluster(ray=RaySpec()).run("echo never", quiet=True)

    assert (result.state, result.cause, result.returncode) == (RunState.FAILED, FailureCause.GPUS_MISSING, 125)
    assert "rank 1 (" in result.detail
    server.wait_for_no_container()


@pytest.mark.ray
@pytest.mark.timeout(200)
def test_node_that_never_joins_is_named(
    make_server: Callable[..., LoopbackModal], launcher: Make, cluster: Make, tmp_path: Path
) -> None:
    """A node whose Ray does not start in time fails the run, and its log can be read."""
    slow = other_ray(tmp_path / "bin", "import time; print('thinking', flush=True); time.sleep(600)")
    server = make_server(**with_ray(slow))

    result = cluster(ray=RaySpec(start_timeout=20)).run("echo never", quiet=True)

    assert (result.state, result.cause, result.returncode) == (RunState.FAILED, FailureCause.RAY_NOT_READY, 125)
    assert "rank 1 (" in result.detail
    assert "==> 1/ray/start.log <==\nthinking" in "\n".join(Run.attach(result.run_id).logs(rank=1))
    server.wait_for_no_container()


@pytest.mark.ray
@pytest.mark.timeout(200)
def test_another_ray_on_a_node_is_reported(
    make_server: Callable[..., LoopbackModal], launcher: Make, cluster: Make, tmp_path: Path
) -> None:
    """A node with another version of Ray fails the run, with Ray's own message."""
    server = make_server(**with_ray(other_ray(tmp_path / "bin", OTHER_VERSION)))

    result = cluster(ray=RaySpec()).run("echo never", quiet=True)

    assert (result.state, result.returncode) == (RunState.FAILED, 125)
    assert result.cause in (FailureCause.RAY_NOT_READY, FailureCause.RAY_VERSION_MISMATCH, FailureCause.RAY_EXITED)
    assert "rank 1 (" in result.detail
    assert "Version mismatch" in result.detail
    server.wait_for_no_container()


# -- while the command runs ------------------------------------------------------------------------------------------


def test_dead_container_fails_the_run(server: LoopbackModal, cluster: Make) -> None:
    """The death of another rank's container stops the command, and the rank is named."""
    run = cluster().submit("echo up; sleep 600")
    assert next(iter(run.logs(follow=True))) == "up"

    server.kill(container_of(server, 1))

    result = run.wait(60)
    assert (result.state, result.cause, result.returncode) == (RunState.FAILED, FailureCause.RANK_LOST, 143)
    assert "rank 1 (" in result.detail
    server.wait_for_no_container()


def test_dead_container_takes_one_attempt(server: LoopbackModal, cluster: Make) -> None:
    """With retries, the death of a container starts the next attempt on a new cluster."""
    run = cluster(retries=1).submit('echo "up $SKYRL_ATTEMPT"; [ "$SKYRL_ATTEMPT" = 2 ] || sleep 600')
    assert next(iter(run.logs(follow=True))) == "up 1"

    server.kill(container_of(server, 1))

    result = run.wait(90)
    assert (result.state, result.attempts) == (RunState.SUCCEEDED, 2)
    lines = list(run.logs())
    assert [line for line in lines if line.startswith("up")] == ["up 1", "up 2"]
    assert any("attempt 1" in line and "143" in line for line in lines)


def test_preempted_node_lets_the_command_save(server: LoopbackModal, cluster: Make) -> None:
    """If another rank is preempted, rank 0's command may save, and is started again in the same attempt."""
    # Modal sends the signal to the preempted container only, which reports it to rank 0.
    command = (
        'f=$SKYRL_DATA/saved; [ -e "$f" ] && { echo "resumed in attempt $SKYRL_ATTEMPT"; exit 0; }; '
        "trap 'echo saving; touch \"$f\"; exit 9' INT; echo up; sleep 600 & wait"
    )
    run = cluster(grace=20).submit(command)
    assert next(iter(run.logs(follow=True))) == "up"

    server.preempt(container_of(server, 1), alone=True)

    result = run.wait(120)
    assert (result.state, result.attempts) == (RunState.SUCCEEDED, 1)
    lines = list(run.logs())
    assert "saving" in lines
    assert "resumed in attempt 1" in lines


def test_preempted_cluster_continues_in_its_attempt(server: LoopbackModal, cluster: Make) -> None:
    """A preempted cluster starts its command again in the same attempt."""
    command = (
        'f=$SKYRL_DATA/twice; [ -e "$f" ] && { echo "again $SKYRL_ATTEMPT"; exit 0; }; touch "$f"; echo up; sleep 600'
    )
    run = cluster().submit(command)
    assert next(iter(run.logs(follow=True))) == "up"

    server.preempt(container_of(server, 0))

    assert run.wait(90).succeeded
    assert "again 1" in list(run.logs())


@pytest.mark.parametrize("crashes_allowed", [0, 2])
def test_death_of_rank_0_ends_the_other_ranks(
    make_server: Callable[..., LoopbackModal], launcher: Make, cluster: Make, crashes_allowed: int
) -> None:
    """If the container of rank 0 dies, the other ranks exit by themselves, and the run is lost."""
    server = make_server(crashes_allowed=crashes_allowed)
    run = cluster().submit("echo up; sleep 600")
    assert next(iter(run.logs(follow=True))) == "up"
    other = container_of(server, 1)

    server.kill(container_of(server, 0))

    server.wait_until(lambda: other.state == "done", 20)
    result = run.wait(90)
    assert (result.state, result.cause) == (RunState.LOST, FailureCause.CONTAINER_DIED)
    assert result.returncode != 0
    server.wait_for_no_container(20)  # earlier than Modal would kill a container that does not exit


def test_timeout_ends_all_ranks(server: LoopbackModal, cluster: Make) -> None:
    """A timeout of the command ends all containers."""
    result = cluster(timeout=1).run("sleep 600", output=io.BytesIO(), quiet=True)

    assert (result.state, result.cause, result.returncode) == (RunState.TIMED_OUT, FailureCause.ATTEMPT_TIMEOUT, 124)
    server.wait_for_no_container()


def test_volumes_of_all_ranks_are_committed_first(server: LoopbackModal, cluster: Make) -> None:
    """Every rank commits its volumes before the result is returned."""
    cluster().run("true", quiet=True, check=True)

    ranks = {c.id: c.gang.members.index(c) for c in server.containers(running=False)}
    order = [
        (call.name, ranks[call.container])
        for call in server.calls()
        if call.name in ("VolumeCommit", "FunctionPutOutputs") and call.container is not None
    ]
    assert ("VolumeCommit", 1) in order
    assert order.index(("FunctionPutOutputs", 0)) > order.index(("VolumeCommit", 1))
