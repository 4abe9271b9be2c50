"""How rank 0 reacts to events of the cluster. No Ray is started."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from skyrl_modal.container.event_router import EventRouter
from skyrl_modal.container.events import (
    CommandExited,
    Event,
    RankDisconnected,
    RankMessageReceived,
    StopRequested,
)
from skyrl_modal.container.failures import RunStopped, StartError
from skyrl_modal.container.log_keeper import LogKeeper
from skyrl_modal.container.masking import SecretMask
from skyrl_modal.container.rank_connections import Connection, connect_to_rank_zero
from skyrl_modal.container.ray_cluster import ClusterServices, RayCluster
from skyrl_modal.container.start_slots import claim_start_slots
from skyrl_modal.protocol.job import Job, RayOptions, WorkerLossPolicy
from skyrl_modal.protocol.messages import Hello, LogLine, RankFailed, RayExited, StopRequest
from skyrl_modal.protocol.rank_config import RankConfig
from skyrl_modal.protocol.state import FailureCause, StopReason
from tests.container.records import TOKENS, make_cluster, make_job

TIMEOUT = 10.0


class Rank0:
    """Rank 0 with its events and the messages that it reported."""

    def __init__(self, job: Job, config: RankConfig) -> None:
        self.messages: list[str] = []
        self.events = EventRouter(reap=lambda: None, is_outdated=self._is_outdated)
        services = ClusterServices(
            events=self.events,
            report=lambda text, cause=None: self.messages.append(text),
            open_url=str,
            keep_logs=lambda attempt: LogKeeper(
                Path(job.run_folder, "logs"), config, SecretMask(), note=self.messages.append
            ),
            secrets=SecretMask(),
        )
        self.cluster = RayCluster(job, config, {"PATH": "/nonexistent"}, services)

    def _is_outdated(self, event: Event) -> bool:
        return self.cluster.is_outdated(event)

    def wait_for(self, event: Event) -> None:
        """Wait until an event arrives."""
        assert self.events.wait_for(lambda other: other == event, time.monotonic() + TIMEOUT) == event


@pytest.fixture
def join(tmp_path: Path) -> Iterator[Callable[..., tuple[Rank0, Connection]]]:
    """Return a function that starts rank 0 of two ranks and connects rank 1."""
    with contextlib.ExitStack() as stack:

        def join(**fields: object) -> tuple[Rank0, Connection]:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                port = listener.getsockname()[1]
            rank0 = Rank0(make_job(tmp_path, nodes=2, **fields), make_cluster(2, port))
            connection = connect_to_rank_zero(
                ("127.0.0.1", port),
                Hello(TOKENS.ranks, 1),
                timeout=TIMEOUT,
                put=lambda event: None,
                is_cancelled=lambda: False,
            )
            assert connection is not None
            stack.callback(rank0.cluster.end, is_failed=False)
            stack.callback(connection.close)
            return rank0, connection

        yield join


def test_cluster_without_ray_starts_when_all_joined(join: Callable[..., tuple[Rank0, Connection]]) -> None:
    """Without Ray, the command starts when every rank is connected."""
    rank0, _ = join()

    rank0.cluster.start(1)

    assert rank0.cluster.is_started
    assert len(rank0.messages) == 1


def test_log_lines_of_ranks_are_reported(join: Callable[..., tuple[Rank0, Connection]]) -> None:
    """A message of another rank is reported with its rank."""
    rank0, connection = join()

    connection.send(LogLine("copied a file"))
    connection.send(StopRequest(StopReason.CANCELLED))
    rank0.wait_for(StopRequested(StopReason.CANCELLED))

    assert rank0.messages == ["rank 1: copied a file"]


def test_stop_while_ranks_are_missing(tmp_path: Path) -> None:
    """A stop request ends the start, and a kill ends the wait for ranks that have not joined."""
    rank0 = Rank0(make_job(tmp_path, nodes=2), make_cluster(2))
    rank0.events.put(StopRequested(StopReason.CONTAINER_ENDING))
    with pytest.raises(RunStopped) as caught:
        rank0.cluster.start(1)
    assert caught.value.reason is StopReason.CONTAINER_ENDING

    rank0.events.put(StopRequested(StopReason.KILL))
    rank0.cluster.end(is_failed=False)

    assert rank0.messages == ["not joined, and no longer waited for: rank 1 (127.0.0.1)"]


@pytest.fixture
def used_slots(tmp_path: Path) -> Iterator[RankConfig]:
    """Return rank 0 of a run while other runs use all slots to start Ray."""
    folder = tmp_path / "slots"
    folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY)
    with contextlib.ExitStack() as slots:
        slots.callback(os.close, descriptor)
        while (claim := claim_start_slots(descriptor, 1)) is not None:
            slots.enter_context(claim)
        yield replace(make_cluster(1), start_slots_fd=descriptor)


def test_stop_while_waiting_for_other_runs(tmp_path: Path, used_slots: RankConfig) -> None:
    """A stop request ends the wait for the start of other runs' Ray, and no other event is lost."""
    rank0 = Rank0(make_job(tmp_path, ray=RayOptions()), used_slots)
    rank0.events.put(CommandExited(0))
    rank0.events.put(StopRequested(StopReason.CALLER_EXITED))

    with pytest.raises(RunStopped) as caught:
        rank0.cluster.start(1)

    assert caught.value.reason is StopReason.CALLER_EXITED
    assert rank0.messages == ["waiting for other runs on this machine to start their Ray"]
    rank0.wait_for(CommandExited(0))
    rank0.cluster.end(is_failed=False)


def test_wait_for_other_runs_is_bounded(tmp_path: Path, used_slots: RankConfig) -> None:
    """A run starts its Ray after half of start_timeout, also if no slot is free."""
    rank0 = Rank0(make_job(tmp_path, ray=RayOptions(start_timeout=0.4)), used_slots)
    begin = time.monotonic()

    with pytest.raises(StartError) as caught:
        rank0.cluster.start(1)

    assert caught.value.failure.cause is FailureCause.RAY_NOT_INSTALLED
    assert time.monotonic() - begin >= 0.2
    assert rank0.messages == [
        "waiting for other runs on this machine to start their Ray",
        "other runs are still starting their Ray after 0.2 s; starting this one too",
    ]
    rank0.cluster.end(is_failed=False)


def test_missing_ray_is_a_start_error(tmp_path: Path) -> None:
    """The run fails with the cause and the remedy if there is no Ray on the PATH."""
    rank0 = Rank0(make_job(tmp_path, ray=RayOptions()), make_cluster(1))

    with pytest.raises(StartError) as caught:
        rank0.cluster.start(1)

    assert caught.value.failure.cause is FailureCause.RAY_NOT_INSTALLED
    assert "On this machine: pip install ray." in caught.value.failure.summary
    rank0.cluster.end(is_failed=False)


def test_lost_rank_fails_the_command(join: Callable[..., tuple[Rank0, Connection]]) -> None:
    """The loss of a rank is a failure with its rank, and the rank cannot be started again."""
    rank0, connection = join()
    connection.close()
    rank0.wait_for(RankDisconnected(1))

    failure = rank0.cluster.failure_of(RankDisconnected(1))

    assert failure is not None
    assert (failure.cause, failure.rank) == (FailureCause.RANK_LOST, 1)
    assert rank0.cluster.disconnected_ranks == {1}


def test_lost_rank_is_tolerated_with_wait(join: Callable[..., tuple[Rank0, Connection]]) -> None:
    """With on_worker_loss="wait", the command continues without a rank that cannot be started again."""
    rank0, connection = join(ray=RayOptions(on_worker_loss=WorkerLossPolicy.WAIT))
    connection.close()
    rank0.wait_for(RankDisconnected(1))

    assert rank0.cluster.failure_of(RankDisconnected(1)) is None
    assert rank0.messages[-1].endswith("not restarting it; the command continues")


def test_lost_node_is_restarted_with_wait(join: Callable[..., tuple[Rank0, Connection]]) -> None:
    """With on_worker_loss="wait", the Ray node of a connected rank is started three times again."""
    rank0, _ = join(ray=RayOptions(on_worker_loss=WorkerLossPolicy.WAIT))
    rank0.events.wait_for(lambda event: True, time.monotonic() + TIMEOUT)  # the rank has joined
    exited = RankMessageReceived(1, RayExited(1, "  last line"))

    for _ in range(4):
        assert rank0.cluster.failure_of(exited) is None

    ends = [message.rpartition("\n")[2] for message in rank0.messages]
    restarting = "restarting its Ray node; the command continues"
    assert ends == [restarting] * 3 + ["not restarting it; the command continues"]


def test_failures_of_ranks(join: Callable[..., tuple[Rank0, Connection]]) -> None:
    """A failure that a rank reports has the rank's cause; an exit of its Ray has the tail of its log."""
    rank0, _ = join(ray=RayOptions())

    failed = rank0.cluster.failure_of(RankMessageReceived(1, RankFailed(FailureCause.WORKDIR_MISSING, "missing")))
    exited = rank0.cluster.failure_of(RankMessageReceived(1, RayExited(1, "  last line")))

    assert failed is not None
    assert (failed.cause, failed.rank) == (FailureCause.WORKDIR_MISSING, 1)
    assert exited is not None
    assert (exited.cause, exited.rank, exited.detail) == (FailureCause.RAY_EXITED, 1, "  last line")


def test_other_events_are_no_failure(join: Callable[..., tuple[Rank0, Connection]]) -> None:
    """The command continues after an event that concerns neither Ray nor a rank."""
    rank0, _ = join()

    assert rank0.cluster.failure_of(CommandExited(1)) is None
    assert rank0.cluster.ray_exit is None
