"""Clusters as only Modal has them: containers that die, are moved, or come up without what was asked for."""

from __future__ import annotations

import io
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skyrl_modal import Launcher, RaySpec, Run, RunState, SpecError
from tests.support.loopback import LoopbackModal
from tests.support.loopback.records import Container
from tests.support.other_ray import OTHER_VERSION, other_ray

Make = Callable[..., Launcher]


@pytest.fixture
def cluster(launcher: Make) -> Make:
    """Makes launchers of two nodes, without Ray unless said otherwise."""

    def make(**fields: Any) -> Launcher:
        return launcher(**{"nodes": 2, "gpu": "H100:8", **fields})

    return make


def container_of(server: LoopbackModal, rank: int) -> Container:
    [gang] = {id(c.gang): c.gang for c in server.containers()}.values()
    member: Container = gang.members[rank]
    return member


def with_ray(folder: Path) -> dict[str, list[Path]]:
    """Options of a server whose containers have the ``ray`` in this folder."""
    return {"container_path": [folder], "visible": [folder]}


# -- before it starts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"gpu": None}, r'gpu=None.*"H100:8"'),
        ({"gpu": "H100:4"}, r'gpu=.H100:4.*"H100:8", or nodes=1'),
        ({"gpu": ["H100:8", "A100-80GB:2"]}, r'gpu=.A100-80GB:2.*"A100-80GB:8"'),
        ({"nodes": 33}, "nodes=33.*up to 32"),
    ],
)
def test_what_modal_would_not_cluster_is_told_before_anything_is_sent(
    server: LoopbackModal, cluster: Make, fields: dict[str, Any], told: str
) -> None:
    with pytest.raises(SpecError, match=told):
        cluster(**fields).run("true")
    assert server.names() == []


def test_modals_own_refusal_is_told(server: LoopbackModal, cluster: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "skyrl_modal.backends.modal.backend.WHOLE_HOST", 4
    )  # as if Modal's rule were another one than known

    with pytest.raises(SpecError, match="must request all GPUs of their hosts"):
        cluster(gpu="H100:4").run("true", quiet=True)


@pytest.mark.parametrize("rdma", [False, True])
def test_modals_fast_network_is_asked_for(server: LoopbackModal, cluster: Make, rdma: bool) -> None:
    cluster(rdma=rdma).run("true", quiet=True, check=True)

    [create] = server.calls("FunctionCreate")
    assert create.request.function.i6pn_enabled
    assert create.request.function._experimental_group_size == 2
    assert create.request.function.resources.rdma == rdma


# -- while it starts -------------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_a_node_without_its_gpus_is_told_at_once(server: LoopbackModal, cluster: Make) -> None:
    server.faults.lost_gpus[1] = 3

    result = cluster(ray=RaySpec()).run("echo never", quiet=True)

    assert (result.state, result.returncode) == (RunState.FAILED, 125)
    assert re.match(r"rank 1 \([\d.]+\) has 5 of the 8 GPUs that were asked for", result.detail)
    server.wait_for_no_container()


@pytest.mark.ray
@pytest.mark.timeout(200)
def test_a_node_that_never_joins_is_named(
    make_server: Callable[..., LoopbackModal], launcher: Make, cluster: Make, tmp_path: Path
) -> None:
    slow = other_ray(tmp_path / "bin", "import time; print('thinking', flush=True); time.sleep(600)")
    server = make_server(**with_ray(slow))

    result = cluster(ray=RaySpec(start_timeout=20)).run("echo never", quiet=True)

    assert (result.state, result.returncode) == (RunState.FAILED, 125)
    assert re.match(
        r"the cluster was not ready within 20 s: rank 1 \([\d.]+\): its Ray node has not come up\.", result.detail
    )
    assert "==> start.log <==\nthinking" in "\n".join(Run.attach(result.run_id).logs(rank=1))
    server.wait_for_no_container()


@pytest.mark.ray
@pytest.mark.timeout(200)
def test_another_ray_on_a_node_is_told_in_rays_words(
    make_server: Callable[..., LoopbackModal], launcher: Make, cluster: Make, tmp_path: Path
) -> None:
    server = make_server(**with_ray(other_ray(tmp_path / "bin", OTHER_VERSION)))

    result = cluster(ray=RaySpec()).run("echo never", quiet=True)

    assert (result.state, result.returncode) == (RunState.FAILED, 125)
    assert re.match(r"rank 1 \([\d.]+\): its Ray node ended with exit code 1:\n", result.detail)
    assert "Version mismatch" in result.detail
    server.wait_for_no_container()


def test_a_container_without_ray_is_told(
    make_server: Callable[..., LoopbackModal], launcher: Make, cluster: Make, tmp_path: Path
) -> None:
    make_server(container_env={"PATH": "/usr/bin:/bin"})
    bare = tmp_path / "python"
    bare.symlink_to(sys.executable)

    result = cluster(ray=RaySpec(), env={"PATH": "/usr/bin:/bin"}).run("echo never", quiet=True)

    assert (result.state, result.returncode) == (RunState.FAILED, 125)
    assert "there is no `ray` on the PATH" in result.detail


# -- while the command runs ------------------------------------------------------------------------------------------


def test_a_container_that_dies_fails_the_run_with_its_rank(server: LoopbackModal, cluster: Make) -> None:
    run = cluster().submit("echo up; sleep 600")
    assert next(iter(run.logs(follow=True))) == "up"

    server.kill(container_of(server, 1))

    result = run.wait(60)
    assert result.state is RunState.FAILED
    assert re.match(r"rank 1 \([\d.]+\): it is gone", result.detail)
    assert result.returncode == 143
    server.wait_for_no_container()


def test_a_container_that_dies_takes_an_attempt(server: LoopbackModal, cluster: Make) -> None:
    run = cluster(retries=1).submit('echo "up $SKYRL_ATTEMPT"; [ "$SKYRL_ATTEMPT" = 2 ] || sleep 600')
    assert next(iter(run.logs(follow=True))) == "up 1"

    server.kill(container_of(server, 1))

    result = run.wait(90)
    assert (result.state, result.attempts) == (RunState.SUCCEEDED, 2)
    lines = list(run.logs())
    assert [line for line in lines if line.startswith("up")] == ["up 1", "up 2"]
    assert any("attempt 1 ended with exit code 143: rank 1 (" in line for line in lines)


def test_a_container_that_is_moved_lets_the_command_save_and_start_again(server: LoopbackModal, cluster: Make) -> None:
    # Modal tells only the one that is moved; it says so to rank 0.
    command = (
        'f=$SKYRL_DATA/saved; [ -e "$f" ] && { echo "resumed in attempt $SKYRL_ATTEMPT"; exit 0; }; '
        "trap 'echo saving; touch \"$f\"; exit 9' INT; echo up; sleep 600 & wait"
    )
    run = cluster(grace=20).submit(command)
    assert next(iter(run.logs(follow=True))) == "up"

    server.kill(container_of(server, 1), signal.SIGINT)

    result = run.wait(120)
    assert (result.state, result.attempts) == (RunState.SUCCEEDED, 1)
    lines = list(run.logs())
    assert "saving" in lines
    assert "resumed in attempt 1" in lines


def test_a_cluster_that_is_preempted_goes_on_in_the_same_attempt(server: LoopbackModal, cluster: Make) -> None:
    command = (
        'f=$SKYRL_DATA/twice; [ -e "$f" ] && { echo "again $SKYRL_ATTEMPT"; exit 0; }; touch "$f"; echo up; sleep 600'
    )
    run = cluster().submit(command)
    assert next(iter(run.logs(follow=True))) == "up"

    server.preempt(container_of(server, 0))

    assert run.wait(90).succeeded
    assert "again 1" in list(run.logs())


@pytest.mark.parametrize("crashes_allowed", [0, 2])
def test_the_death_of_rank_0_ends_the_others_and_is_told(
    make_server: Callable[..., LoopbackModal], launcher: Make, cluster: Make, crashes_allowed: int
) -> None:
    server = make_server(crashes_allowed=crashes_allowed)
    run = cluster().submit("echo up; sleep 600")
    assert next(iter(run.logs(follow=True))) == "up"
    other = container_of(server, 1)

    server.kill(container_of(server, 0))

    server.wait_until(lambda: other.state == "done", 20)
    result = run.wait(90)
    assert result.state is RunState.LOST
    assert result.returncode != 0
    server.wait_for_no_container(20)  # sooner than Modal would kill what does not end by itself


def test_a_time_out_ends_all_ranks(server: LoopbackModal, cluster: Make) -> None:
    result = cluster(timeout=1).run("sleep 600", output=io.BytesIO(), quiet=True)

    assert (result.state, result.returncode) == (RunState.TIMED_OUT, 124)
    server.wait_for_no_container()


def test_every_ranks_volume_is_committed_before_the_result(server: LoopbackModal, cluster: Make) -> None:
    cluster().run("true", quiet=True, check=True)

    order = [call for call in server.calls() if call.name in ("VolumeCommit", "FunctionPutOutputs")]
    ranks = {c.id: c.gang.members.index(c) for c in server.containers(running=False)}
    told = [(call.name, ranks[call.container]) for call in order if call.container is not None]
    assert ("VolumeCommit", 1) in told
    assert told.index(("FunctionPutOutputs", 0)) > told.index(("VolumeCommit", 1))
