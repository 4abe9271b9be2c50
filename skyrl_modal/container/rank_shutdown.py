"""Wait for the other ranks of a cluster when their Ray is stopped, or when the run ends."""

from __future__ import annotations

import time

from skyrl_modal.container.event_router import EventRouter
from skyrl_modal.container.events import (
    DeadlineReached,
    RankDisconnected,
    RankEvent,
    RankMessageReceived,
    StopRequested,
)
from skyrl_modal.container.failures import Report
from skyrl_modal.container.rank_connections import RankServer
from skyrl_modal.protocol.messages import RayStopped, Shutdown, StopRay
from skyrl_modal.protocol.rank_config import RankConfig
from skyrl_modal.protocol.state import StopReason

#: Seconds in which a rank has to stop its Ray between two attempts.
RAY_STOP_TIMEOUT = 30.0
#: Seconds in which a rank has to save its logs, commit its volumes and exit.
RANK_EXIT_TIMEOUT = 120.0
#: Seconds that a run waits at its end for ranks that have not joined, since they try to connect until they give up.
LATE_RANK_TIMEOUT = 30.0


class RankShutdown:
    """Waits for the other ranks of a cluster.

    Args:
        config: Rank 0 of the cluster.
        events: The supervisor's events.
        report: Receives messages.
    """

    def __init__(self, config: RankConfig, events: EventRouter, report: Report) -> None:
        self._config = config
        self._events = events
        self._report = report

    def wait_for_ranks(self, ranks: set[int], request: StopRay | Shutdown) -> None:
        """Wait until each rank has complied with a request, or disconnected.

        Other events of ranks are dropped, since they belong to the Ray that is ended. Stop requests stay in the queue.

        Args:
            ranks: The ranks to which the request was sent. It is emptied.
            request: The request.
        """
        is_stop = isinstance(request, StopRay)
        timeout, what = (RAY_STOP_TIMEOUT, "stop its Ray") if is_stop else (RANK_EXIT_TIMEOUT, "exit")
        deadline = time.monotonic() + timeout
        while ranks:
            match self._events.wait_for(lambda event: isinstance(event, RankEvent), deadline):
                case DeadlineReached():
                    for rank in sorted(ranks):
                        label = self._config.rank_label(rank)
                        self._report(f"{label} did not {what} within {timeout:g} s; no longer waiting for it")
                    return
                case RankDisconnected(rank):
                    ranks.discard(rank)
                case RankMessageReceived(rank, RayStopped()) if is_stop:
                    ranks.discard(rank)

    def end_late_ranks(self, server: RankServer, request: Shutdown) -> None:
        """Wait for the ranks that have not joined yet, and end them.

        Args:
            server: The connections to the ranks.
            request: The request that ends a rank.
        """
        deadline = time.monotonic() + LATE_RANK_TIMEOUT
        while late := server.never_joined_ranks:
            event = self._events.wait_for(
                lambda event: isinstance(event, RankEvent) or event == StopRequested(StopReason.KILL), deadline
            )
            if isinstance(event, DeadlineReached | StopRequested):
                labels = ", ".join(self._config.rank_label(rank) for rank in sorted(late))
                self._report(f"not joined, and no longer waited for: {labels}")
                break
        server.send_all(request)
        self.wait_for_ranks(server.connected_ranks, request)
