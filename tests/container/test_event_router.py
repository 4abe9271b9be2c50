"""Which events reach the supervisor."""

from __future__ import annotations

import time

import pytest

from skyrl_modal.container.event_router import EventRouter
from skyrl_modal.container.events import (
    ChildExited,
    CommandExited,
    DeadlineReached,
    Event,
    RankDisconnected,
    RayNodeExited,
    StopRequested,
)
from skyrl_modal.protocol.state import StopReason

STOP = StopRequested(StopReason.CANCELLED)


@pytest.fixture
def reaped() -> list[bool]:
    return []


@pytest.fixture
def router(reaped: list[bool]) -> EventRouter:
    """A router for which the current start of Ray has the number 2."""
    return EventRouter(
        reap=lambda: reaped.append(True),
        is_outdated=lambda event: isinstance(event, RayNodeExited) and event.start != 2,
    )


def put(router: EventRouter, *events: Event) -> None:
    for event in events:
        router.put(event)


def test_exited_children_are_reaped(router: EventRouter, reaped: list[bool]) -> None:
    """ChildExited is handled by the router, and the next event is returned."""
    put(router, ChildExited(), CommandExited(0), ChildExited())

    assert router.get(None) == CommandExited(0)
    assert router.get(time.monotonic()) == DeadlineReached()
    assert len(reaped) == 2


def test_events_of_an_earlier_ray_are_dropped(router: EventRouter) -> None:
    """Only events of the current Ray are returned."""
    put(router, RayNodeExited(1, 0), RayNodeExited(2, 1))

    assert router.get(None) == RayNodeExited(2, 1)


def test_deadline_is_an_event(router: EventRouter) -> None:
    """DeadlineReached is returned if no event arrives."""
    assert router.get(time.monotonic() + 0.01) == DeadlineReached()


def test_wait_for_keeps_stop_requests(router: EventRouter) -> None:
    """A stop request that a wait does not accept is returned by the next call."""
    put(router, STOP, RankDisconnected(1))

    assert router.wait_for(lambda event: isinstance(event, RankDisconnected), None) == RankDisconnected(1)
    assert router.get(None) == STOP


def test_wait_for_handles_children(router: EventRouter, reaped: list[bool]) -> None:
    """Children are reaped also while a wait accepts only other events."""
    put(router, ChildExited(), CommandExited(0))

    assert router.wait_for(lambda event: event == STOP, time.monotonic() + 0.01) == DeadlineReached()
    assert reaped == [True]
