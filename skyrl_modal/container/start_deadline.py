"""The limit on the time until the command starts, for a container on Modal.

Modal may start a container hours after the caller has exited, and the replacement of a preempted container at any time.
The limit applies to the first start of the command only.
"""

from __future__ import annotations

import contextlib

from skyrl_modal.container.lease_store import LeaseStore, StoreUnavailable, send
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.leases import started_key
from skyrl_modal.protocol.start_deadline import seconds_to_start


class StartDeadline:
    """The limit of one run, if it has one.

    The run's folder shows whether an earlier container has started the command. A run without a writable volume has no
    lasting folder; an entry of the Dict shows it then.

    Args:
        job: The run.
        store: The Dict with the leases.
    """

    def __init__(self, job: Job, store: LeaseStore) -> None:
        self._job = job
        self._store = store
        self._uses_store = job.limits.start_deadline is not None and job.run_folder_volume is None

    def seconds_left(self, *, has_started: bool) -> float | None:
        """Return the seconds until the command has to start; None if there is no limit.

        Args:
            has_started: Whether the run's folder shows that an earlier container has started the command.
        """
        if self._job.limits.start_deadline is None or has_started:
            return None
        if self._uses_store:
            with contextlib.suppress(StoreUnavailable):
                if send(lambda: self._store.get(started_key(self._job.run_id))) is not None:
                    return None
        return seconds_to_start(self._job)

    def record_start(self) -> None:
        """Record that the command starts, for the next container of this run."""
        if self._uses_store:
            with contextlib.suppress(StoreUnavailable):
                send(lambda: self._store.put(started_key(self._job.run_id), "started"))

    def forget_start(self) -> None:
        """Remove the record, since the run has ended."""
        if self._uses_store:
            with contextlib.suppress(StoreUnavailable):
                send(lambda: self._store.pop(started_key(self._job.run_id), None))
