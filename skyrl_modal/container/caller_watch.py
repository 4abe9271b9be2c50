"""The lease of the process that owns a run: the run is stopped if the lease has expired."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

from skyrl_modal.container.lease_store import LeaseStore, StoreUnavailable, send
from skyrl_modal.protocol.leases import caller_key, caller_value_age

#: Seconds between two requests at least and at most.
MIN_POLL_INTERVAL = 0.2
MAX_POLL_INTERVAL = 15.0
#: How much the clocks of the caller and of the container may differ, in seconds.
CLOCK_TOLERANCE = 60.0
#: Seconds for the first renewal if the caller seems to have exited long before the container started.
FIRST_RENEWAL_TIMEOUT = 45.0


class CallerWatch:
    """Watches whether the owner of a run renews its lease.

    Time in which the lease cannot be read does not count: the caller may have renewed it.

    Args:
        store: The Dict with the leases.
        run_id: The run.
        lease: Seconds without a renewal after which the lease has expired.
        on_expired: Called once, in another thread.
    """

    def __init__(self, store: LeaseStore, run_id: str, lease: float, on_expired: Callable[[], None]) -> None:
        self._store = store
        self._key = caller_key(run_id)
        self._lease = lease
        self._on_expired = on_expired
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="caller-lease", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()

    def _watch(self) -> None:
        interval = min(max(self._lease / 10, MIN_POLL_INTERVAL), MAX_POLL_INTERVAL)
        value: object = None
        unchanged_since: float | None = None
        replied_at = time.monotonic()
        while not self._stopped.wait(interval):
            try:
                current = send(lambda: self._store.get(self._key))
            except StoreUnavailable:
                if unchanged_since is not None:
                    unchanged_since += time.monotonic() - replied_at
                replied_at = time.monotonic()
                continue
            replied_at = now = time.monotonic()
            if unchanged_since is None:
                value, unchanged_since = current, now - self._age_at_start(current)
            elif current != value:
                value, unchanged_since = current, now
            elif now - unchanged_since >= self._lease:
                self._on_expired()
                return

    def _age_at_start(self, value: object) -> float:
        """Return the seconds to count as elapsed at the first look.

        The run may have waited for a container for hours. If the entry seems to be that old, the caller has a short
        time for a renewal: clocks can be wrong, so the entry's time alone does not decide.
        """
        age = caller_value_age(value)
        if age is None or age <= self._lease + CLOCK_TOLERANCE:
            return 0.0
        return max(0.0, self._lease - FIRST_RENEWAL_TIMEOUT)


def remove_caller_lease(store: LeaseStore, run_id: str) -> None:
    """Remove the entry of a run that has ended. Call it last, since the caller renews it until it has the result."""
    with contextlib.suppress(StoreUnavailable):
        send(lambda: store.pop(caller_key(run_id), None), timeout=2.0)
