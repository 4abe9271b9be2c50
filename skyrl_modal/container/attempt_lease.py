"""The lease of the container that executes a rank: only one container of a run executes its command.

Modal may start the replacement of a preempted container while the old one still saves its files. The new one waits
until the old one has released the lease, or has not renewed it for ``EXPIRY_TIMEOUT`` seconds.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable

from skyrl_modal.container.lease_store import LeaseStore, StoreUnavailable, send
from skyrl_modal.dataclass import dataclass
from skyrl_modal.event_queue import wait_interruptibly
from skyrl_modal.protocol.leases import EXPIRY_TIMEOUT, RENEWAL_INTERVAL, ContainerEntry, container_key

#: Seconds between two requests while an earlier container holds the lease.
POLL_INTERVAL = 1.0
#: Seconds without any reply after which the run continues without a lease.
UNAVAILABLE_TIMEOUT = 20.0
#: Elapsed seconds at which the wait is reported, after the first report; then the last one again and again.
REPORT_TIMES = (15.0, 60.0)
#: Seconds for the release. It is not needed: the lease would expire.
RELEASE_TIMEOUT = 5.0


class RunContinuedElsewhere(Exception):
    """Another container has continued the run, so that this one must not report how it ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierContainer:
    """What the lease shows about an earlier container of the same rank.

    Attributes:
        is_known: Whether the lease could be read. If not, an earlier container may still be running.
        was_ending: Whether it had been asked to exit, and was killed before it could release the lease.
        killed: The last entry of one that was killed, if it has times; None otherwise.
    """

    is_known: bool = True
    was_ending: bool = False
    killed: ContainerEntry | None = None


class AttemptLease:
    """The lease of one execution of the function.

    Args:
        store: The Dict with the leases.
        run_id: The run.
        rank: The rank that this container executes.
        report: Receives messages.
        started_at: When this process started: seconds since the epoch; None if that is of no interest.

    Attributes:
        store: The Dict with the leases.
        holder: Random digits of this execution of the function.
        is_lost: Whether another container has taken over the lease.
    """

    def __init__(
        self,
        store: LeaseStore,
        run_id: str,
        rank: int,
        report: Callable[[str], None],
        started_at: float | None = None,
    ) -> None:
        self.store = store
        self._key = container_key(run_id, rank)
        self._started_at = started_at
        self.holder = os.urandom(8).hex()
        self._report = report
        self._count = 0
        self._is_held = False
        self._is_ending = False
        self._is_released = False
        self._changed = threading.Event()
        self._renewing: threading.Thread | None = None
        self._on_lost: Callable[[], None] | None = None
        self.is_lost = False

    def acquire(self) -> EarlierContainer:
        """Wait until no earlier container executes this rank, and keep the lease from then on."""
        found = _Wait(self._report).until_free(self._try_to_acquire, self._take_over)
        self._is_held = found.is_known
        if self._is_held:
            self._renewing = threading.Thread(target=self._renew, name="lease", daemon=True)
            self._renewing.start()
        return found

    def _try_to_acquire(self) -> ContainerEntry | None:
        """Acquire the lease if it is free. Return the entry of its holder otherwise."""
        if send(lambda: self.store.put(self._key, self._value(), skip_if_exists=True)):
            return None
        value = send(lambda: self.store.get(self._key))
        entry = ContainerEntry.decode(value)
        return None if entry.holder == self.holder else entry

    def _take_over(self) -> None:
        send(lambda: self.store.put(self._key, self._value()))

    def _value(self) -> str:
        seen_at = None if self._started_at is None else time.time()
        return ContainerEntry(self.holder, self._count, self._is_ending, self._started_at, seen_at).encode()

    def call_if_lost(self, function: Callable[[], None]) -> None:
        """Call a function, in another thread, if another container takes over the lease, since this one was late."""
        self._on_lost = function
        if self.is_lost:
            function()

    def mark_ending(self) -> None:
        """Record that the platform ends this container: if it is killed too early, its attempt does not count."""
        self._is_ending = True
        self._changed.set()

    def release(self) -> None:
        """Release the lease, so that another container need not wait. All files have been committed."""
        if self._is_released:
            return
        self._is_released = True
        self._changed.set()
        if self._renewing is None or self.is_lost:
            return
        self._renewing.join(RELEASE_TIMEOUT)
        with contextlib.suppress(StoreUnavailable):
            send(lambda: self.store.pop(self._key, None), RELEASE_TIMEOUT)

    def _renew(self) -> None:
        while not self._is_released:
            self._changed.wait(RENEWAL_INTERVAL)
            self._changed.clear()
            if self._is_released:
                return
            with contextlib.suppress(StoreUnavailable):
                value = send(lambda: self.store.get(self._key))
                if value is not None and ContainerEntry.decode(value).holder != self.holder:
                    self.is_lost = True
                    if self._on_lost is not None:
                        self._on_lost()
                    return
                self._count += 1
                send(lambda: self.store.put(self._key, self._value()))


class _Wait:
    """The wait for a lease that another container holds."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._begin = self._changed_at = self._replied_at = time.monotonic()
        self._entry: ContainerEntry | None = None
        self._reports = 0

    def until_free(
        self, try_to_acquire: Callable[[], ContainerEntry | None], take_over: Callable[[], None]
    ) -> EarlierContainer:
        """Wait until the lease is free, has expired, or cannot be read for ``UNAVAILABLE_TIMEOUT`` seconds."""
        while True:
            now = time.monotonic()
            try:
                entry = try_to_acquire()
                if entry is None:
                    return self._finish("has ended")
                if entry != self._entry:
                    self._entry, self._changed_at = entry, now
                elif now - self._changed_at >= EXPIRY_TIMEOUT:
                    take_over()
                    return self._finish("does not respond", killed=entry)
                self._replied_at = time.monotonic()
                self._report_progress()
            except StoreUnavailable as error:
                # What was not observed does not count.
                self._entry = None
                if time.monotonic() - self._replied_at >= UNAVAILABLE_TIMEOUT:
                    self._report(f"warning: it is not known whether an earlier container still runs: {error}")
                    return EarlierContainer(is_known=False)
            wait_interruptibly(threading.Event().wait, POLL_INTERVAL)

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._begin

    def _report_progress(self) -> None:
        last = REPORT_TIMES[-1]
        times = (0.0, *REPORT_TIMES)
        due = times[self._reports] if self._reports < len(times) else last * (self._reports - len(times) + 2)
        if self._elapsed < due:
            return
        self._reports += 1
        self._report(f"waiting for the earlier container of this run to end ({self._elapsed:.0f} s)")

    def _finish(self, what: str, *, killed: ContainerEntry | None = None) -> EarlierContainer:
        if self._reports:
            self._report(f"the earlier container {what}; continuing after {self._elapsed:.0f} s")
        if killed is None:
            return EarlierContainer()
        return EarlierContainer(was_ending=killed.is_ending, killed=None if killed.seen_at is None else killed)
