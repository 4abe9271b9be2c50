"""What is missing until the command may start."""

from __future__ import annotations

from pathlib import Path

import pytest

from skyrl_modal.container.cluster_readiness import (
    JOIN_TIMEOUT,
    incomplete_cluster,
    missing_gpus,
    missing_resources,
    not_connected_ranks,
    ready_messages,
    start_timeout,
    start_timeout_exceeded,
)
from skyrl_modal.container.events import ClusterNode, ClusterNodes
from skyrl_modal.protocol.job import CheckoutFacts, RayOptions
from skyrl_modal.protocol.messages import Hello
from skyrl_modal.protocol.rank_config import RankConfig
from skyrl_modal.protocol.state import FailureCause
from tests.container.records import make_cluster, make_job

CLUSTER = make_cluster(2)


def node(rank: int, **resources: float) -> ClusterNode:
    return ClusterNode(id=f"id-{rank}", name=f"rank-{rank}", address=f"10.0.0.{rank}", resources=resources)


def test_start_timeout(tmp_path: Path) -> None:
    """A run with Ray has RaySpec's timeout; a run without Ray has the default for joining."""
    assert start_timeout(make_job(tmp_path, ray=RayOptions(start_timeout=7.0))) == 7.0
    assert start_timeout(make_job(tmp_path)) == JOIN_TIMEOUT


def test_complete_cluster_lacks_nothing(tmp_path: Path) -> None:
    """A cluster with the requested resources on every rank is ready."""
    job = make_job(tmp_path, nodes=2, gpus_per_node=2, ray=RayOptions(num_cpus=4))
    nodes = [node(0, GPU=2, CPU=4), node(1, GPU=2, CPU=8)]

    assert missing_resources(job, CLUSTER, nodes) == {}
    assert incomplete_cluster(job, CLUSTER, nodes) is None


def test_missing_resources_are_counted(tmp_path: Path) -> None:
    """The description names each resource with its available and its requested amount."""
    job = make_job(tmp_path, nodes=2, gpus_per_node=2, ray=RayOptions(num_cpus=4))

    missing = missing_resources(job, CLUSTER, [node(1, GPU=1, CPU=2)])

    assert missing == {0: "its Ray node is not up", 1: "its Ray node has 1 of 2 GPUs and 2 of 4 CPUs"}


def test_incomplete_cluster_fails_with_its_rank(tmp_path: Path) -> None:
    """If all nodes are up and a resource is missing, the failure names the first rank that lacks it."""
    job = make_job(tmp_path, nodes=2, gpus_per_node=2, ray=RayOptions())

    failure = incomplete_cluster(job, CLUSTER, [node(0, GPU=2), node(1, GPU=1)])

    assert failure is not None
    assert (failure.cause, failure.rank) == (FailureCause.GPUS_MISSING, 1)


def test_growing_cluster_is_no_failure(tmp_path: Path) -> None:
    """While nodes are still starting, missing resources are no failure yet."""
    job = make_job(tmp_path, nodes=2, gpus_per_node=2, ray=RayOptions())

    assert incomplete_cluster(job, CLUSTER, [node(0, GPU=1)]) is None


def test_nothing_is_missing_without_ray(tmp_path: Path) -> None:
    """Without Ray, only the connections of the ranks count."""
    assert missing_resources(make_job(tmp_path, nodes=2, gpus_per_node=8), CLUSTER, []) == {}


@pytest.mark.parametrize(("requested", "counted"), [(2, 2), (2, 3), (2, None), (None, 0), (0, 0)])
def test_enough_gpus(tmp_path: Path, requested: int | None, counted: int | None) -> None:
    """There is no failure if the GPUs suffice, were not requested, or were not counted."""
    job = make_job(tmp_path, gpus_per_node=requested, ray=RayOptions())

    assert missing_gpus(job, CLUSTER, [Hello("token", 1, counted)]) is None


def test_too_few_gpus(tmp_path: Path) -> None:
    """A node with fewer GPUs than requested fails before its Ray is started."""
    job = make_job(tmp_path, gpus_per_node=2, ray=RayOptions())

    failure = missing_gpus(job, CLUSTER, [Hello("token", 1, 1, "nvidia-smi failed")])

    assert failure is not None
    assert (failure.cause, failure.rank) == (FailureCause.GPUS_MISSING, 1)
    assert "has 1 of the 2 requested GPUs (nvidia-smi failed)" in failure.summary


@pytest.mark.parametrize(("is_modal", "has_ray"), [(True, False), (True, True), (False, True), (False, False)])
def test_too_few_gpus_of_rank_zero(tmp_path: Path, is_modal: bool, has_ray: bool) -> None:
    """On Modal another container may have the GPUs. On this machine, a run without Ray does not need all of them."""
    job = make_job(tmp_path, gpus_per_node=2, ray=RayOptions() if has_ray else None)

    failure = missing_gpus(job, RankConfig(gpus=0, has_modal_runtime=is_modal))

    assert (failure is not None) is (is_modal or has_ray)
    assert failure is None or failure.is_of_machine is is_modal


def test_not_connected_ranks() -> None:
    """Rank 0 is not expected to connect to itself."""
    assert not_connected_ranks(make_cluster(4), {2}) == {1, 3}
    assert not_connected_ranks(make_cluster(1), set()) == set()


def test_start_timeout_on_one_node(tmp_path: Path) -> None:
    """The failure of a single node ends with the tail of Ray's log."""
    job = make_job(tmp_path, ray=RayOptions(start_timeout=7))

    failure = start_timeout_exceeded(job, make_cluster(1), connected=(), nodes=(), log_tail="start.log:\n  line")

    assert failure.cause is FailureCause.RAY_NOT_READY
    assert failure.text == "Ray was not ready within 7 s:\nstart.log:\n  line"


def test_start_timeout_names_every_rank(tmp_path: Path) -> None:
    """The failure of a cluster describes each rank that is not ready, and its rank is one that did not join."""
    job = make_job(tmp_path, nodes=2, ray=RayOptions(start_timeout=7))

    failure = start_timeout_exceeded(job, CLUSTER, connected=(), nodes=(), log_tail="tail")

    assert (failure.cause, failure.rank) == (FailureCause.RAY_NOT_READY, 1)
    assert "rank 0 (127.0.0.1): its Ray node is not up; rank 1 (127.0.0.1): it has not joined" in failure.summary


def test_start_timeout_without_ray(tmp_path: Path) -> None:
    """A rank that never joined a run without Ray counts as lost."""
    failure = start_timeout_exceeded(make_job(tmp_path, nodes=2), CLUSTER, connected=(), nodes=(), log_tail="")

    assert (failure.cause, failure.rank) == (FailureCause.RANK_LOST, 1)


def test_ready_messages(tmp_path: Path) -> None:
    """The messages state another port than the requested one, another version than the pinned one, and all nodes."""
    job = make_job(tmp_path, nodes=2, ray=RayOptions(port=6379), checkout=CheckoutFacts(ray_version="2.57.0"))
    cluster = ClusterNodes(version="2.60.0", nodes=(node(1, CPU=2), node(0, CPU=1, GPU=4)))

    messages = ready_messages(job, cluster, "10.0.0.0:7000", 1.25)

    assert messages[0] == "Ray 2.60.0 at 10.0.0.0:7000 (port 6379 is in use), ready after 1.2 s"
    assert messages[1].startswith("the checkout pins ray==2.57.0.")
    assert messages[2:] == [
        "rank-0 at 10.0.0.0: 1 CPUs, 4 GPUs, node id id-0",
        "rank-1 at 10.0.0.1: 2 CPUs, node id id-1",
    ]


def test_ready_message_without_deviation(tmp_path: Path) -> None:
    """One message suffices if port and version are as requested, on one node."""
    cluster = ClusterNodes(version="2.60.0", nodes=(node(0, CPU=1),))

    messages = ready_messages(make_job(tmp_path, ray=RayOptions()), cluster, "127.0.0.1:6379", 3)

    assert messages == ["Ray 2.60.0 at 127.0.0.1:6379, ready after 3.0 s"]
