"""Clusters on the loopback, with the real client and container runtime."""

from __future__ import annotations

import os
from typing import Any

import modal
import pytest

from . import LoopbackModal
from .logs import SYSTEM
from .network import bridges_possible

BRIDGE = pytest.mark.skipif(not bridges_possible(), reason="needs ip, nsenter, unshare, and user namespaces or root")


@pytest.fixture
def clustered(jobs: Any, loopback: LoopbackModal, running: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a context manager that runs a function of loopback_jobs on a cluster."""

    def run(name: str, size: int, **options: Any) -> Any:
        monkeypatch.setattr(jobs, name, modal.clustered(size=size)(getattr(jobs, name)))
        options.setdefault("gpu", "H100:8")
        return running(name, **options)

    return run


@pytest.mark.parametrize("own_addresses", [False, pytest.param(True, marks=BRIDGE)])
def test_ranks_connect_and_rank_0_returns_the_result(
    loopback: LoopbackModal, clustered: Any, own_addresses: bool
) -> None:
    """Each rank reaches the others at their addresses, and the call returns the output of rank 0."""
    loopback.plane.clusters.own_addresses = own_addresses
    data = os.urandom(3 << 20)  # large enough for a blob, which each rank downloads
    with clustered("rank_facts", 3) as facts:
        result = facts.remote(data)
    assert result["data"] == data
    assert result["rank"] == 0
    assert result["answers"] == [0, 1, 2]
    assert len(set(result["addresses"])) == 3
    assert result["addresses"][0].startswith("10." if own_addresses else "127.")
    assert result["containers"] == [container.id for container in loopback.containers(running=False)]
    for rank, container in enumerate(result["containers"]):
        printed = "".join(e.data for e in loopback.log() if e.container_id == container and e.descriptor != SYSTEM)
        assert printed == f"imported\nrank {rank}\n"
    loopback.wait_for_no_container()


def test_failing_rank_fails_the_call(loopback: LoopbackModal, clustered: Any) -> None:
    """An exception in rank 1 is raised by the call, and all containers exit."""
    with clustered("rank_waits", 2) as wait:
        with pytest.raises(ValueError, match="rank 1 failed"):
            wait.remote(1, "raise")
        loopback.wait_for_no_container()


def test_dead_rank_restarts_all_ranks(loopback: LoopbackModal, clustered: Any) -> None:
    """All ranks are started again after one of their containers died, if Modal's platform does so."""
    loopback.mode = "cluster_restarts"
    with clustered("rank_waits", 2) as wait:
        call = wait.spawn(-1, "")
        loopback.wait_for_text("rank 1 is up")
        first = loopback.containers()
        loopback.kill(first[1])
        loopback.wait_until(lambda: all(c.state == "done" for c in first))
        loopback.wait_until(lambda: len([c for c in loopback.plane.scheduler.containers.values() if c.running]) == 2)
        ends = [(c.id, c.stop_cause, c.returncode) for c in loopback.containers(running=False)]
        assert len(ends) == 4, (ends, [(e.container_id, e.data) for e in loopback.log()])
        call.cancel()
        with pytest.raises(modal.exception.RemoteError):
            call.get()
        loopback.wait_for_no_container()


def test_preempted_cluster_restarts(loopback: LoopbackModal, clustered: Any) -> None:
    """After a preemption the same input runs on new containers, without counting as a crash."""
    with clustered("rank_waits", 2) as wait:
        call = wait.spawn(-1, "")
        loopback.wait_for_text("rank 0 is up")
        loopback.preempt(loopback.containers()[1])
        loopback.wait_until(lambda: len([c for c in loopback.plane.scheduler.containers.values() if c.running]) == 2)
        assert call.object_id == loopback.function_calls[0].id
        assert loopback.function_calls[0].inputs[0].crashes == 0


def test_ranks_are_killed_after_rank_0_returned(loopback: LoopbackModal, clustered: Any) -> None:
    """Ranks that still run when the grace period after rank 0's output ends are killed."""
    loopback.plane.stop_grace = 0.5
    with clustered("rank_waits", 2) as wait:
        assert wait.remote(0, "return") == 0
        loopback.wait_for_no_container()


def test_timeout_ends_all_ranks(loopback: LoopbackModal, clustered: Any) -> None:
    """After a timeout no container of the cluster is left."""
    with clustered("rank_waits", 2, timeout=2) as wait:
        with pytest.raises(modal.exception.FunctionTimeoutError):
            wait.remote(-1, "")
        loopback.wait_for_no_container()


def test_cluster_of_one_runs(loopback: LoopbackModal, clustered: Any) -> None:
    """A cluster of one container sends TaskClusterHello once and returns its output."""
    with clustered("rank_waits", 1, gpu=None) as wait:
        assert wait.remote(0, "return") == 0
    response = loopback.calls("TaskClusterHello")
    assert len(response) == 1


def test_cluster_without_full_hosts_is_refused(loopback: LoopbackModal, clustered: Any) -> None:
    """A cluster must request all GPUs of its hosts."""
    with pytest.raises(modal.exception.InvalidError, match="all GPUs"), clustered("rank_waits", 2, gpu="H100:4"):
        pass
