"""The request for the workspace's rates. A run does not wait for it longer than ``REQUEST_TIMEOUT``."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import Mapping

import modal

from skyrl_modal.backends.modal.checks import has_token
from skyrl_modal.backends.modal.event_loop import event_loop, wait_for_future
from skyrl_modal.backends.modal.rate_store import load_rates, needs_request, store_failure, store_rates
from skyrl_modal.backends.modal.rates import WorkspaceRates

#: Seconds from the start of a request after which a run uses stored rates, or the table.
REQUEST_TIMEOUT = 2.0


class RateRequest:
    """The rates of the workspace, which are requested in the background unless they are stored."""

    def __init__(self) -> None:
        self._deadline = time.monotonic() + REQUEST_TIMEOUT
        self._future: concurrent.futures.Future[Mapping[str, float] | None] | None = None
        self._fetched: WorkspaceRates | None = None
        if needs_request() and has_token():
            self._future = asyncio.run_coroutine_threadsafe(_fetch(self._deadline), event_loop())

    def result(self) -> WorkspaceRates | None:
        """Return the rates; None if they are not known. It waits until the deadline at most."""
        if self._future is not None:
            try:
                values = wait_for_future(self._future, max(0.0, self._deadline - time.monotonic()))
                self._fetched = None if values is None else WorkspaceRates(values, time.time())
            except TimeoutError:
                self._future.cancel()
                store_failure()
            self._future = None
        if self._fetched is not None:
            return self._fetched
        stored = load_rates()
        return None if stored is None else WorkspaceRates(*stored)


async def _fetch(deadline: float) -> Mapping[str, float] | None:
    """Fetch the rates and store them; store the failure and return None if that is not possible."""
    try:
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
            values = await fetch_rates()
    except Exception:  # any error of Modal's client: the cost is an estimate, and must not prevent a run
        await asyncio.to_thread(store_failure)
        return None
    await asyncio.to_thread(store_rates, values)
    return values


async def fetch_rates() -> dict[str, float]:
    """Return the rates of the workspace by Modal's names.

    Raises:
        Exception: Modal's client has no rates, or Modal does not return them.
    """
    # Since client 1.5.4.
    rates = await modal.Workspace.from_context().billing.rates.aio()
    return {str(name): float(value) for name, value in rates.items()}
