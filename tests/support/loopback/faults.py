"""Misbehaviour on request. All of it is asked for through `LoopbackModal.faults`, from any thread.

Assumed of Modal: a control plane that cannot be reached answers UNAVAILABLE, or drops the connection; running
containers do not notice. Dropped log streams end with UNAVAILABLE; silent ones deliver later what they held back.
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
    names: frozenset[str] | None
    who: str
    left: int
    until: float
    status: Status
    message: str
    after: bool

    def hits(self, name: str, container: Container | None, after: bool) -> bool:
        side = "client" if container is None else "container"
        return (
            self.after == after
            and (self.names is None or name in self.names)
            and self.who in ("all", side)
            and (self.left > 0 or time.monotonic() < self.until)
        )


@attrs.define
class _Cut:
    wanted: bool = False


@attrs.define
class BuildFailure:
    pattern: re.Pattern[str]
    log: str
    exception: str


class Faults:
    """What goes wrong, and when. Made by the server."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures: list[_Failure] = []
        self._in_flight: list[tuple[str, Container | None, asyncio.Task[Any], _Cut]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self.token_revoked = False
        self.start_delay = 0.0
        self.build_failures: list[BuildFailure] = []
        self.logs_silent_until = 0.0
        self.log_delay = 0.0
        self.offline = False
        self._held: frozenset[str] = frozenset()
        self.lost_gpus: dict[int, int] = {}  # rank: how many GPUs its container lacks
        self.refused = 0  # how many RPCs were refused

    # -- asked for by tests ------------------------------------------------------------------------------------------

    def unavailable(
        self,
        seconds: float = 0.0,
        *,
        calls: int = 0,
        names: str | Iterable[str] | None = None,
        who: str = "client",
        status: Status = Status.UNAVAILABLE,
        message: str = "The server is unavailable (as asked for).",
        reply_lost: bool = False,
    ) -> None:
        """Refuse RPCs for some seconds, or the next `calls` of them.

        Args:
            seconds: How long. What is under way on that side is cut at the start.
            calls: How many, instead of how long.
            names: Only these RPCs; None: all.
            who: "client", "container" or "all".
            status: The gRPC status of the refusal.
            message: Its text.
            reply_lost: The RPC is done, and the refusal stands for its lost reply.
        """
        chosen = None if names is None else frozenset([names] if isinstance(names, str) else names)
        until = time.monotonic() + seconds if seconds else 0.0
        with self._lock:
            self._failures.append(_Failure(chosen, who, calls, until, status, message, reply_lost))
        if seconds:
            self.drop_connections(names=chosen, who=who)

    def hold(self, *names: str) -> None:
        """Let the clients' RPCs of these names wait until `clear`."""
        self._held = frozenset(names)

    def drop_connections(self, names: Iterable[str] | None = None, who: str = "client") -> int:
        """Cut what is under way (streams and long polls) of these RPCs; None: all. Returns how many."""
        chosen = None if names is None else set(names)
        with self._lock:
            hit = [
                entry
                for entry in self._in_flight
                if (chosen is None or entry[0] in chosen)
                and who in ("all", "client" if entry[1] is None else "container")
            ]
        for _, _, task, cut in hit:
            cut.wanted = True
            assert self._loop is not None
            self._loop.call_soon_threadsafe(task.cancel)
        return len(hit)

    def drop_log_streams(self) -> int:
        """Cut the open log streams. Returns how many."""
        return self.drop_connections(["AppGetLogs"])

    def silence_logs(self, seconds: float) -> None:
        """Let log streams deliver nothing for so long; they stay open, and the entries come afterwards."""
        self.logs_silent_until = time.monotonic() + seconds

    def delay_logs(self, seconds: float) -> None:
        """Let each log entry be seen only so long after it was written."""
        self.log_delay = seconds

    def slow_start(self, seconds: float) -> None:
        """Let each container from now on start that much later."""
        self.start_delay = seconds

    def fail_build(self, pattern: str, log: str = "", exception: str = "") -> None:
        """Let the build of images with a Dockerfile command that matches fail, with this log."""
        self.build_failures.append(BuildFailure(re.compile(pattern), log, exception))

    def revoke_token(self, revoked: bool = True) -> None:
        """Refuse the client's token from now on."""
        self.token_revoked = revoked

    def clear(self) -> None:
        """Behave again."""
        with self._lock:
            self._failures.clear()
        self.token_revoked = False
        self.start_delay = self.log_delay = self.logs_silent_until = 0.0
        self.build_failures.clear()
        self._held = frozenset()

    # -- asked by the server -----------------------------------------------------------------------------------------

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    @property
    def outage(self) -> bool:
        """Whether the clients cannot reach the server, which then must not take them for dead."""
        now = time.monotonic()
        with self._lock:
            return self.offline or any(f.until > now and f.who != "container" for f in self._failures)

    def _raise(self, name: str, container: Container | None, after: bool) -> None:
        with self._lock:
            now = time.monotonic()
            self._failures = [f for f in self._failures if f.left > 0 or f.until > now]
            failure = next((f for f in self._failures if f.hits(name, container, after)), None)
            if failure is None:
                return
            failure.left -= 1
            self.refused += 1
        raise GRPCError(failure.status, failure.message)

    async def before(self, name: str, container: Container | None) -> None:
        while container is None and name in self._held:
            await asyncio.sleep(0.05)
        self._raise(name, container, after=False)

    def after(self, name: str, container: Container | None) -> None:
        self._raise(name, container, after=True)

    @contextlib.contextmanager
    def in_flight(self, name: str, container: Container | None, task: asyncio.Task[Any]) -> Iterator[_Cut]:
        cut = _Cut()
        entry = (name, container, task, cut)
        with self._lock:
            self._in_flight.append(entry)
        try:
            yield cut
        finally:
            with self._lock:
                self._in_flight.remove(entry)
