"""Tests of leases with a store in memory: what a container concludes from entries, clocks and failed requests."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from skyrl_modal.container import attempt_lease, caller_watch
from skyrl_modal.container.attempt_lease import AttemptLease, EarlierContainer
from skyrl_modal.container.caller_watch import CallerWatch
from skyrl_modal.protocol.leases import ContainerEntry, caller_key, container_key


class MemoryStore:
    """A Dict in memory, which can be unavailable.

    Attributes:
        values: The entries.
        is_available: Whether requests succeed.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.is_available = True
        self.requests = threading.Semaphore(0)

    def _count(self) -> None:
        self.requests.release()
        if not self.is_available:
            raise ConnectionError("no network")

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value."""
        self._count()
        return self.values.get(key, default)

    def put(self, key: str, value: str, *, skip_if_exists: bool = False) -> bool:
        """Set a value."""
        self._count()
        if skip_if_exists and key in self.values:
            return False
        self.values[key] = value
        return True

    def pop(self, key: str, default: Any) -> Any:
        """Remove a value."""
        self._count()
        return self.values.pop(key, default)

    def wait_for_requests(self, count: int) -> None:
        """Wait until this many further requests have arrived."""
        for _ in range(count):
            assert self.requests.acquire(timeout=20)


@pytest.fixture
def store() -> MemoryStore:
    """Return an empty store."""
    return MemoryStore()


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten all times."""
    for name, value in {"EXPIRY_TIMEOUT": 0.6, "RENEWAL_INTERVAL": 0.1, "POLL_INTERVAL": 0.05}.items():
        monkeypatch.setattr(attempt_lease, name, value)
    monkeypatch.setattr(attempt_lease, "UNAVAILABLE_TIMEOUT", 0.5)
    monkeypatch.setattr(caller_watch, "FIRST_RENEWAL_TIMEOUT", 2.0)


def lease(store: MemoryStore, messages: list[str] | None = None) -> AttemptLease:
    """Return a lease of rank 0 of the run r1."""
    return AttemptLease(store, "r1", 0, [].append if messages is None else messages.append)


# -- containers ------------------------------------------------------------------------------------------------------


def test_first_container_does_not_wait(store: MemoryStore) -> None:
    """A free lease is acquired with one request, and removed at the end."""
    messages: list[str] = []
    held = lease(store, messages)

    assert held.acquire() == EarlierContainer()
    assert list(store.values) == [container_key("r1", 0)]
    held.release()

    assert (store.values, messages) == ({}, [])


def test_lease_is_acquired_when_it_is_released(store: MemoryStore) -> None:
    """A container waits as long as the lease is renewed, and reports the wait."""
    messages: list[str] = []
    first, second = lease(store), lease(store, messages)
    first.acquire()
    found: list[EarlierContainer] = []
    waiting = threading.Thread(target=lambda: found.append(second.acquire()))
    waiting.start()
    store.wait_for_requests(80)  # more than would fit into the time of an expired lease
    assert found == []

    first.release()
    waiting.join(20)
    second.release()

    assert found == [EarlierContainer()]
    assert "waiting for the earlier container" in messages[0]
    assert "has ended" in messages[-1]


@pytest.mark.parametrize("is_ending", [False, True])
def test_expired_lease_is_taken_over(store: MemoryStore, is_ending: bool) -> None:
    """A lease that is not renewed has expired, whatever the clock of its holder showed."""
    store.values[container_key("r1", 0)] = ContainerEntry("other", 7, is_ending).encode()
    held = lease(store)

    assert held.acquire() == EarlierContainer(was_ending=is_ending)
    held.release()
    assert store.values == {}


def test_holder_that_was_too_late_is_stopped(store: MemoryStore) -> None:
    """A container whose lease another one has taken over is notified, and does not remove the other's entry."""
    first = lease(store)
    first.acquire()
    lost = threading.Event()
    first.call_if_lost(lost.set)

    store.values[container_key("r1", 0)] = ContainerEntry("other").encode()

    assert lost.wait(20)
    first.release()
    assert (first.is_lost, len(store.values)) == (True, 1)


def test_unavailable_store_ends_the_wait(store: MemoryStore) -> None:
    """Without a reply, the container continues after a limited time, and knows nothing about an earlier one."""
    store.is_available = False
    messages: list[str] = []
    held = lease(store, messages)

    assert held.acquire() == EarlierContainer(is_known=False)
    held.release()
    assert "no network" in messages[-1]


def test_end_of_the_container_is_recorded_immediately(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the platform ends a container, its entry shows it without waiting for the next renewal."""
    monkeypatch.setattr(attempt_lease, "RENEWAL_INTERVAL", 600.0)
    held = lease(store)
    held.acquire()
    store.wait_for_requests(1)

    held.mark_ending()
    store.wait_for_requests(2)

    deadline = time.monotonic() + 20
    while not ContainerEntry.decode(store.values[container_key("r1", 0)]).is_ending:
        assert time.monotonic() < deadline
    held.release()


# -- callers ---------------------------------------------------------------------------------------------------------


def watch(store: MemoryStore, seconds: float) -> tuple[CallerWatch, threading.Event]:
    """Return a watch, and the event that the lease has expired."""
    expired = threading.Event()
    return CallerWatch(store, "r1", seconds, expired.set), expired


def test_lease_of_a_caller_that_renews_it(store: MemoryStore) -> None:
    """A lease that is renewed does not expire."""
    watching, expired = watch(store, 1.0)
    for count in range(10):
        store.values[caller_key("r1")] = f"{count} {time.time():.0f}"
        store.wait_for_requests(1)

    watching.stop()

    assert not expired.is_set()


@pytest.mark.parametrize("value", [None, "1 0", "garbage", "1 99999999999"])
def test_lease_expires_whatever_the_entry_is(store: MemoryStore, value: str | None) -> None:
    """An entry that does not change expires, also if it is missing, damaged, or has the time of a wrong clock."""
    if value is not None:
        store.values[caller_key("r1")] = value

    watching, expired = watch(store, 1.0)

    assert expired.wait(20)
    watching.stop()


def test_caller_that_exited_before_the_container_started(store: MemoryStore) -> None:
    """The lease of a caller that seems to have exited hours ago expires soon, unless it is renewed."""
    store.values[caller_key("r1")] = f"1 {time.time() - 7200:.0f}"
    watching, expired = watch(store, 6.0)

    begin = time.monotonic()
    assert expired.wait(20)
    assert time.monotonic() - begin < 5.0
    watching.stop()

    watching, expired = watch(store, 6.0)
    store.wait_for_requests(2)
    store.values[caller_key("r1")] = f"2 {time.time() - 7000:.0f}"  # its clock is wrong
    assert not expired.wait(2)
    watching.stop()


def test_time_without_replies_does_not_count(store: MemoryStore) -> None:
    """If the container has no network for longer than the lease, the caller has time to renew it afterwards."""
    store.values[caller_key("r1")] = "1"
    watching, expired = watch(store, 2.0)
    store.wait_for_requests(2)

    store.is_available = False
    store.wait_for_requests(15)  # about 3 s
    store.is_available = True
    store.wait_for_requests(1)
    store.values[caller_key("r1")] = "2"

    assert not expired.wait(1)
    assert expired.wait(20)
    watching.stop()
