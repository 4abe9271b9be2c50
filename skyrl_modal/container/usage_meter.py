"""The time of a run's containers, kept by rank 0: written to the run's folder, and limited by the budget.

It is imported for runs that have a rate only.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable

from skyrl_modal.container.events import RankDisconnected, RankEvent, RankJoined
from skyrl_modal.dataclass import replace
from skyrl_modal.protocol.codec import ProtocolError
from skyrl_modal.protocol.job import Job, NodeRate
from skyrl_modal.protocol.leases import RENEWAL_INTERVAL, ContainerEntry
from skyrl_modal.protocol.result import RunResultRecord
from skyrl_modal.protocol.run_folder import RunFolder, read_record, write_record
from skyrl_modal.protocol.state import StopReason
from skyrl_modal.protocol.usage import MAX_SECONDS, USAGE_FILE, ContainerUsage, UsageRecord, cost_of

#: Seconds between two records while the run continues.
UPDATE_INTERVAL = 30.0
_IMPORTED_AT = time.monotonic()
#: The times of ``time.monotonic()`` until which this process has been counted: Modal may call the function again in it.
_counted: list[float] = []


def process_age() -> float:
    """Return the seconds since this process started; since this module was imported, where the system has no /proc."""
    try:
        with open("/proc/self/stat", "rb") as file:
            start = int(file.read().rpartition(b")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        with open("/proc/uptime", "rb") as file:
            age = float(file.read().split()[0]) - start
    except (OSError, ValueError, IndexError):
        age = -1.0
    since_import = time.monotonic() - _IMPORTED_AT
    return age if age >= since_import else since_import


def uncounted_age() -> float:
    """Return the seconds since this process started, or since the end of the last run that it has counted."""
    return min([process_age(), *(time.monotonic() - moment for moment in _counted)])


def mark_counted() -> None:
    """Record that this process has been counted until now: what it does next is another execution."""
    _counted[:] = [time.monotonic()]


class UsageMeter:
    """Counts the time of the run's containers: this one, its other ranks, and those of earlier executions.

    Args:
        job: The run.
        rate: What one node costs.
        container: Random digits of this execution.
        previous: What the lease shows about a container that was killed; None if there was none.

    Attributes:
        is_spent: Whether the budget was reached.
    """

    def __init__(self, job: Job, rate: NodeRate, container: str, previous: ContainerEntry | None = None) -> None:
        self._rate, self._budget, self._container = rate, job.limits.budget, container
        self._path = RunFolder(job.run_folder).file(USAGE_FILE)
        self._lock = threading.Lock()
        age = uncounted_age()
        self._started_at = time.time() - age
        self._earlier = self._read_earlier(job, previous)
        begin = time.monotonic() - age
        #: For each rank: when it started and ended, as times of ``time.monotonic()``. A rank that has not joined yet is
        #: counted from the start of this one: Modal starts all containers of a cluster at the same time.
        self._begins = dict.fromkeys(range(job.nodes), begin)
        self._ends: dict[int, float] = {}
        self._attempt = 0
        self._ended = threading.Event()
        self.is_spent = False

    def _read_earlier(self, job: Job, previous: ContainerEntry | None) -> tuple[ContainerUsage, ...]:
        """Return the usage of earlier containers. Those that were killed are ended where they were last seen."""
        record = None
        with contextlib.suppress(ProtocolError):  # a damaged record must not prevent the run
            record = read_record(UsageRecord, self._path)
        record = record or UsageRecord()
        found = [item if item.has_ended else self._end(item, record, previous) for item in record.containers]
        if previous is not None and all(item.container != previous.holder for item in found):
            # It was killed before its first record was committed.
            seconds = self._last_seen(previous) - (previous.started_at or 0.0)
            found += [
                ContainerUsage(
                    container=previous.holder,
                    rank=rank,
                    started_at=previous.started_at or 0.0,
                    seconds=min(max(0.0, seconds), MAX_SECONDS),
                    has_ended=True,
                    is_estimated=True,
                )
                for rank in range(job.nodes)
            ]
        return tuple(found)

    def _end(self, item: ContainerUsage, record: UsageRecord, previous: ContainerEntry | None) -> ContainerUsage:
        if previous is not None and previous.holder == item.container:
            end = self._last_seen(previous)
        else:
            end = min(record.updated_at + UPDATE_INTERVAL, max(self._started_at, record.updated_at))
        seconds = min(max(item.seconds, end - item.started_at), MAX_SECONDS)
        return replace(item, seconds=round(seconds, 3), has_ended=True, is_estimated=True)

    def _last_seen(self, previous: ContainerEntry) -> float:
        """Return when a container that was killed has ended at the latest, as far as it is known.

        It would have renewed its lease again, and its successor started after its end.
        """
        seen_at = previous.seen_at or 0.0
        return min(seen_at + RENEWAL_INTERVAL, max(self._started_at, seen_at))

    # -- the run -----------------------------------------------------------------------------------------------------

    def begin(self, request_stop: Callable[[StopReason], None]) -> bool:
        """Write the first record, and request a stop when the budget is reached. Return False if it is reached already.

        Args:
            request_stop: Called in another thread.
        """
        self.write()
        if self._seconds_left() <= 0:
            self.is_spent = True
            return False
        threading.Thread(target=self._watch, args=(request_stop,), name="usage", daemon=True).start()
        return True

    def _watch(self, request_stop: Callable[[StopReason], None]) -> None:
        next_record = time.monotonic() + UPDATE_INTERVAL
        while True:
            wait = next_record - time.monotonic()
            if not self.is_spent:
                wait = min(wait, self._seconds_left())
            if self._ended.wait(max(0.0, wait)):
                return
            if not self.is_spent and self._seconds_left() <= 0:
                self.is_spent = True
                request_stop(StopReason.OVER_BUDGET)
            if time.monotonic() >= next_record:
                next_record = time.monotonic() + UPDATE_INTERVAL
                self.write()

    def watch_rank(self, event: RankEvent) -> None:
        """Record that another rank has joined or left. To be called in any thread."""
        now = time.monotonic()
        with self._lock:
            match event:
                case RankJoined(rank, hello) if hello.age is not None and rank in self._begins:
                    self._begins[rank] = now - max(0.0, hello.age)
                    self._ends.pop(rank, None)
                case RankDisconnected(rank):
                    self._ends.setdefault(rank, now)

    def set_attempt(self, attempt: int) -> None:
        """Record which attempt this container executes."""
        self._attempt = attempt

    def end(self, result: RunResultRecord) -> RunResultRecord:
        """End the counting: write the last record, and return the result with the time and the cost until now."""
        self._ended.set()
        self.write(has_ended=True)
        return self.add_to(result)

    def add_to(self, result: RunResultRecord) -> RunResultRecord:
        """Return a result with the time and the cost until now."""
        mark_counted()
        seconds = self.record().seconds
        return replace(result, container_seconds=round(seconds, 3), cost=round(cost_of(self._rate, seconds), 6))

    # -- records -----------------------------------------------------------------------------------------------------

    def record(self, *, has_ended: bool = False) -> UsageRecord:
        """Return the usage of all containers until now."""
        with self._lock:
            now, wall = time.monotonic(), time.time()
            own = [
                ContainerUsage(
                    container=self._container,
                    rank=rank,
                    attempt=self._attempt,
                    started_at=round(wall - (now - begin), 3),
                    seconds=round(max(0.0, self._ends.get(rank, now) - begin), 3),
                    has_ended=has_ended or rank in self._ends,
                )
                for rank, begin in self._begins.items()
            ]
        return UsageRecord(containers=(*self._earlier, *own), updated_at=round(wall, 3))

    def write(self, *, has_ended: bool = False) -> None:
        """Write the record. A disk that is full must not end the run, whose result has the cost too."""
        with contextlib.suppress(OSError):
            write_record(self._path, self.record(has_ended=has_ended), is_durable=False)

    def _seconds_left(self) -> float:
        """Return after how many seconds the budget is reached if all containers continue; infinity without a budget."""
        if self._budget is None:
            return threading.TIMEOUT_MAX
        record = self.record()
        running = sum(not item.has_ended for item in record.containers)
        left = self._budget / self._rate.per_hour * 3600 - record.seconds
        return min(left / max(1, running), threading.TIMEOUT_MAX)
