"""Faults that a test can inject, from any thread, through `LoopbackModal.faults`.

Assumptions about Modal: a control plane that cannot be reached answers UNAVAILABLE, or drops the connection, and
running containers are not affected. Dropped log streams end with UNAVAILABLE; silent ones deliver their entries later.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import attrs
from grpclib import GRPCError, Status

from .records import Container


@attrs.define
class _Failure:
    """A rule that refuses RPCs."""

    names: frozenset[str] | None
    side: str
    left: int
    until: float
    status: Status
    message: str
    after: bool

    def matches(self, name: str, container: Container | None, after: bool) -> bool:
        """Return whether the rule applies to an RPC of this name and caller."""
        side = "client" if container is None else "container"
        return (
            self.after == after
            and (self.names is None or name in self.names)
            and self.side in ("all", side)
            and (self.left > 0 or time.monotonic() < self.until)
        )


@attrs.define
class _Drop:
    """Whether a test has asked to drop an RPC's connection."""

    requested: bool = False


@attrs.define
class BuildFailure:
    """A rule that fails the build of matching images."""

    pattern: re.Pattern[str]
    log: str
    exception: str


class Faults:
    """The faults that are active now. Created by the server."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures: list[_Failure] = []
        self._in_flight: list[tuple[str, Container | None, asyncio.Task[Any], _Drop]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self.token_revoked = False
        self.start_delay = 0.0
        self.build_failures: list[BuildFailure] = []
        self.logs_silent_until = 0.0
        self.log_delay = 0.0
        self.offline = False
        self._held: frozenset[str] = frozenset()
        self.lost_gpus: dict[int, int] = {}  # by rank: number of GPUs that its container lacks
        self.gpu_programs: list[tuple[int, str]] = []  # rank and nvidia-smi of containers that start next
        self.refused = 0  # number of RPCs that were refused

    def next_gpu_program(self, rank: int) -> str | None:
        """Return the shell script that replaces the nvidia-smi of a container, and remove it from the list."""
        with self._lock:
            found = next((item for item in self.gpu_programs if item[0] == rank), None)
            if found is None:
                return None
            self.gpu_programs.remove(found)
            return found[1]

    # -- for tests ---------------------------------------------------------------------------------------------------

    def unavailable(
        self,
        seconds: float = 0.0,
        *,
        calls: int = 0,
        names: str | Iterable[str] | None = None,
        side: str = "client",
        status: Status = Status.UNAVAILABLE,
        message: str = "The server is unavailable (injected fault).",
        reply_lost: bool = False,
    ) -> None:
        """Refuse RPCs for some seconds, or refuse the next `calls` RPCs.

        Args:
            seconds: Duration. RPCs of that side that are in progress are dropped at the start.
            calls: Number of RPCs to refuse, instead of a duration.
            names: Names of the RPCs to refuse; None refuses all.
            side: Whose RPCs are refused: "client", "container" or "all".
            status: gRPC status of the refusal.
            message: Text of the refusal.
            reply_lost: Execute the RPC and then refuse it, as if its reply had been lost.
        """
        chosen = None if names is None else frozenset([names] if isinstance(names, str) else names)
        until = time.monotonic() + seconds if seconds else 0.0
        with self._lock:
            self._failures.append(_Failure(chosen, side, calls, until, status, message, reply_lost))
        if seconds:
            self.drop_connections(names=chosen, side=side)

    def hold(self, *names: str) -> None:
        """Block clients' RPCs of these names until `clear` is called."""
        self._held = frozenset(names)

    def drop_connections(self, names: Iterable[str] | None = None, side: str = "client") -> int:
        """Drop RPCs in progress (streams, long polls) of these names, or all if None. Return their number."""
        chosen = None if names is None else set(names)
        with self._lock:
            matching = [
                entry
                for entry in self._in_flight
                if (chosen is None or entry[0] in chosen)
                and side in ("all", "client" if entry[1] is None else "container")
            ]
        for _, _, task, drop in matching:
            drop.requested = True
            assert self._loop is not None
            self._loop.call_soon_threadsafe(task.cancel)
        return len(matching)

    def drop_log_streams(self) -> int:
        """Drop the open log streams. Return their number."""
        return self.drop_connections(["AppGetLogs"])

    def silence_logs(self, seconds: float) -> None:
        """Deliver nothing on log streams for some seconds. They remain open and deliver the entries afterwards."""
        self.logs_silent_until = time.monotonic() + seconds

    def delay_logs(self, seconds: float) -> None:
        """Deliver each log entry only this many seconds after it was written."""
        self.log_delay = seconds

    def slow_start(self, seconds: float) -> None:
        """Delay the start of each new container by some seconds."""
        self.start_delay = seconds

    def fail_build(self, pattern: str, log: str = "", exception: str = "") -> None:
        """Fail the build of images that have a Dockerfile command matching the pattern, with this log."""
        self.build_failures.append(BuildFailure(re.compile(pattern), log, exception))

    def revoke_token(self, revoked: bool = True) -> None:
        """Refuse the client's token."""
        self.token_revoked = revoked

    def clear(self) -> None:
        """Remove all faults."""
        with self._lock:
            self._failures.clear()
        self.token_revoked = False
        self.start_delay = self.log_delay = self.logs_silent_until = 0.0
        self.build_failures.clear()
        self._held = frozenset()

    # -- for the server ----------------------------------------------------------------------------------------------

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Set the server's event loop."""
        self._loop = loop

    @property
    def outage(self) -> bool:
        """Whether clients cannot reach the server. Their missing heartbeats count."""
        now = time.monotonic()
        with self._lock:
            return self.offline or any(f.until > now and f.side != "container" for f in self._failures)

    def _raise(self, name: str, container: Container | None, after: bool) -> None:
        with self._lock:
            now = time.monotonic()
            self._failures = [f for f in self._failures if f.left > 0 or f.until > now]
            failure = next((f for f in self._failures if f.matches(name, container, after)), None)
            if failure is None:
                return
            failure.left -= 1
            self.refused += 1
        raise GRPCError(failure.status, failure.message)

    async def before(self, name: str, container: Container | None) -> None:
        """Block or refuse an RPC before it is executed, if a fault requires it."""
        while container is None and name in self._held:
            await asyncio.sleep(0.05)
        self._raise(name, container, after=False)

    def after(self, name: str, container: Container | None) -> None:
        """Refuse an RPC after it was executed, if a fault requires it."""
        self._raise(name, container, after=True)

    @contextlib.contextmanager
    def in_flight(self, name: str, container: Container | None, task: asyncio.Task[Any]) -> Iterator[_Drop]:
        """Register an RPC in progress, so that it can be dropped."""
        drop = _Drop()
        entry = (name, container, task, drop)
        with self._lock:
            self._in_flight.append(entry)
        try:
            yield drop
        finally:
            with self._lock:
                self._in_flight.remove(entry)
