"""The runs that the server has read, and the threads in which it reads them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from skyrl_modal.errors import RunNotFound, SkyRLModalError, translate_system_errors
from skyrl_modal.run.index import RunIndex
from skyrl_modal.web.details import diagnose, run_details
from skyrl_modal.web.observed_run import ObservedRun
from skyrl_modal.web.run_list import RunList
from skyrl_modal.web.threads import DaemonThreads

T = TypeVar("T")

#: Threads that read files of this machine, and that wait for other backends.
_LOCAL_THREADS, _REMOTE_THREADS = 4, 8
#: Seconds after which a request for a run is answered with an error.
_LOCAL_SECONDS, _REMOTE_SECONDS = 300.0, 30.0
#: Seconds that the list waits for runs that were not looked at yet.
_LIST_SECONDS = 0.2
#: Bytes of metrics, and number of runs, that are kept in memory. Those that were read least recently are forgotten.
_MAX_BYTES, _MAX_RUNS = 768 << 20, 100
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", re.ASCII)


class Runs:
    """The runs that were started from this machine.

    Attributes:
        list: The list of runs.
    """

    def __init__(self) -> None:
        self.list = RunList()
        self._local = DaemonThreads(_LOCAL_THREADS, _LOCAL_SECONDS)
        self._remote = DaemonThreads(_REMOTE_THREADS, _REMOTE_SECONDS)
        self._listing = DaemonThreads(1, _LOCAL_SECONDS)
        self._observed: dict[str, ObservedRun] = {}
        self._refreshing: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[None]] = set()

    async def observed(self, run_id: str) -> ObservedRun:
        """Return a run.

        Raises:
            RunNotFound: No run has this id.
            RecordError: Its record is damaged.
        """
        if _RUN_ID.fullmatch(run_id) is None:
            raise RunNotFound(run_id)
        found = self._observed.pop(run_id, None)
        if found is None:
            found = await self._local.run(_read, run_id)
            found = self._observed.pop(run_id, found)  # another request may have read it meanwhile
        self._observed[run_id] = found  # the last one is the one that was used last
        self._forget()
        return found

    def _forget(self) -> None:
        total = sum(observed.bytes for observed in self._observed.values())
        while len(self._observed) > 1 and (total > _MAX_BYTES or len(self._observed) > _MAX_RUNS):
            total -= self._observed.pop(next(iter(self._observed))).bytes

    async def call(self, observed: ObservedRun, function: Callable[[], T]) -> T:
        """Call a function about a run in a thread, one at a time for each run.

        Raises:
            TimeoutError: It takes too long.
            SkyRLModalError: The backend cannot answer.
        """

        def locked() -> T:
            with observed.lock, translate_system_errors():
                return function()

        if observed.is_local:
            return await self._local.run(locked)
        result = await self._remote.run(locked)
        if observed.newest_step is not None:
            self.list.set_step(observed.run.id, observed.newest_step)
        return result

    async def refresh_list(self) -> None:
        """Look for new and changed runs. Runs of other backends are looked at in the background."""
        running = before = self._refreshing
        if before is not None and not before.done():
            await asyncio.wait({before})  # it may have looked before the last run was added
            running = self._refreshing
        if running is before or running is None:
            running = self._refreshing = asyncio.create_task(self._listing.run(self.list.refresh))
        await asyncio.shield(running)
        for run_id in self.list.due_elsewhere():
            task = asyncio.create_task(self._update(run_id))
            self._background.add(task)
            task.add_done_callback(self._finished)

    async def list_soon(self) -> bool:
        """Like ``refresh_list``, without waiting longer than a moment. Return whether it has ended by then."""
        task = asyncio.create_task(self.refresh_list())
        self._background.add(task)
        task.add_done_callback(self._finished)
        done, _ = await asyncio.wait({task}, timeout=_LIST_SECONDS)
        return bool(done)

    async def _update(self, run_id: str) -> None:
        with suppress(Exception):  # the reason is in its summary, or the next look may succeed
            await self._remote.run(self.list.update, run_id)

    async def summary(self, observed: ObservedRun) -> dict[str, Any]:
        """Return the summary of a run as JSON, with its state now."""
        run_id = observed.run.id
        values = self.list.summary(run_id)
        if values is None or (observed.is_local and values["returncode"] is None):
            await self.refresh_list()
        elif values["returncode"] is None:
            await self.list_soon()
        values = self.list.summary(run_id)
        if values is None:
            raise RunNotFound(run_id)
        return values

    def has_ended(self, run_id: str) -> bool:
        """Return whether a run had ended when it was last looked at."""
        values = self.list.summary(run_id)
        return values is not None and values["returncode"] is not None

    async def details(self, observed: ObservedRun, summary: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Return what is shown about a run.

        Args:
            observed: The run.
            summary: Its summary.
            seconds: How long to wait for the diagnosis of a failed run, for which its logs are read.
        """
        diagnosing = asyncio.create_task(self.call(observed, lambda: diagnose(observed)))
        self._background.add(diagnosing)
        diagnosing.add_done_callback(self._finished)
        await asyncio.wait({diagnosing}, timeout=seconds)
        return await self.call(observed, lambda: run_details(observed, summary))

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled():
            task.exception()  # a run without diagnosis: what is asked next has the same error

    async def call_all(self, observed: Sequence[ObservedRun], function: Callable[[ObservedRun], T]) -> list[T]:
        """Call a function about several runs, at the same time."""
        return await asyncio.gather(*(self.call(one, lambda one=one: function(one)) for one in observed))  # type: ignore[misc]


def _read(run_id: str) -> ObservedRun:
    with translate_system_errors():
        return ObservedRun(RunIndex().get(run_id))


def describe(error: Exception) -> tuple[int, str, str]:
    """Return the status, the message and the remedy of an error."""
    if isinstance(error, RunNotFound):
        return (
            404,
            f"no run has the id {error.run_id!r}",
            "The list has the runs that were started from this machine.",
        )
    if isinstance(error, TimeoutError):
        return 503, "the backend of the run did not answer in time", "Try again."
    if isinstance(error, FileNotFoundError):
        return 404, str(error), ""
    if isinstance(error, ValueError):
        return 400, str(error), ""
    if isinstance(error, SkyRLModalError):
        return 503, str(error), "Try again."
    return 500, f"{type(error).__name__}: {error}", "Report it with the output of `skyrl-modal ui`."
