"""The loopback's clusters, seen by the real client and runtime."""

from __future__ import annotations

import os
from typing import Any

import modal
import pytest

from . import LoopbackModal
from .network import bridges_possible

BRIDGE = pytest.mark.skipif(not bridges_possible(), reason="needs ip, nsenter, unshare, and user namespaces or root")


@pytest.fixture
def clustered(jobs: Any, loopback: LoopbackModal, running: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(name: str, size: int, **options: Any) -> Any:
        monkeypatch.setattr(jobs, name, modal.clustered(size=size)(getattr(jobs, name)))
        options.setdefault("gpu", "H100:8")
        return running(name, **options)

    return run


@pytest.mark.parametrize("own_addresses", [False, pytest.param(True, marks=BRIDGE)])
def test_ranks_reach_each_other_and_rank_0_answers(
    loopback: LoopbackModal, clustered: Any, own_addresses: bool
) -> None:
    loopback.plane.clusters.own_addresses = own_addresses
    data = os.urandom(3 << 20)  # a blob, which each rank fetches
    with clustered("rank_facts", 3) as facts:
        told = facts.remote(data)
    assert told["data"] == data
    assert told["rank"] == 0
    assert told["answers"] == [0, 1, 2]
    assert len(set(told["addresses"])) == 3
    assert told["addresses"][0].startswith("10." if own_addresses else "127.")
    assert told["containers"] == [container.id for container in loopback.containers(running=False)]
    for rank, container in enumerate(told["containers"]):
        printed = "".join(entry.data for entry in loopback.log() if entry.container_id == container)
        assert printed == f"imported\nrank {rank}\n"
    loopback.wait_for_no_container()


def test_a_failing_rank_fails_the_call(loopback: LoopbackModal, clustered: Any) -> None:
    with clustered("rank_waits", 2) as wait:
        with pytest.raises(ValueError, match="rank 1 failed"):
            wait.remote(1, "raise")
        loopback.wait_for_no_container()


def test_a_dead_rank_starts_all_anew(loopback: LoopbackModal, clustered: Any) -> None:
    with clustered("rank_waits", 2) as wait:
        call = wait.spawn(-1, "")
        loopback.wait_for_text("rank 1 is up")
        first = loopback.containers()
        loopback.kill(first[1])
        loopback.wait_until(lambda: all(c.state == "done" for c in first))
        loopback.wait_until(lambda: len([c for c in loopback.plane.scheduler.containers.values() if c.running]) == 2)
        ends = [(c.id, c.doom, c.returncode) for c in loopback.containers(running=False)]
        assert len(ends) == 4, (ends, [(e.container_id, e.data) for e in loopback.log()])
        call.cancel()
        with pytest.raises(modal.exception.RemoteError):
            call.get()
        loopback.wait_for_no_container()


def test_a_preempted_cluster_starts_anew(loopback: LoopbackModal, clustered: Any) -> None:
    with clustered("rank_waits", 2) as wait:
        call = wait.spawn(-1, "")
        loopback.wait_for_text("rank 0 is up")
        loopback.preempt(loopback.containers()[1])
        loopback.wait_until(lambda: len([c for c in loopback.plane.scheduler.containers.values() if c.running]) == 2)
        assert call.object_id == loopback.function_calls[0].id
        assert loopback.function_calls[0].inputs[0].crashes == 0


def test_ranks_that_outlive_rank_0_are_ended(loopback: LoopbackModal, clustered: Any) -> None:
    loopback.plane.stop_grace = 0.5
    with clustered("rank_waits", 2) as wait:
        assert wait.remote(0, "return") == 0
        loopback.wait_for_no_container()


def test_a_time_out_ends_all_ranks(loopback: LoopbackModal, clustered: Any) -> None:
    with clustered("rank_waits", 2, timeout=2) as wait:
        with pytest.raises(modal.exception.FunctionTimeoutError):
            wait.remote(-1, "")
        loopback.wait_for_no_container()


def test_a_cluster_of_one_has_no_addresses(loopback: LoopbackModal, clustered: Any) -> None:
    with clustered("rank_waits", 1, gpu=None) as wait:
        assert wait.remote(0, "return") == 0
    response = loopback.calls("TaskClusterHello")
    assert len(response) == 1


def test_a_cluster_that_does_not_fill_its_hosts_is_refused(loopback: LoopbackModal, clustered: Any) -> None:
    with pytest.raises(modal.exception.InvalidError, match="all GPUs"), clustered("rank_waits", 2, gpu="H100:4"):
        pass
