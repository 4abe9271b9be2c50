"""The lease of this process on a run that it owns: the run's container stops the run if the lease has expired.

The app of an owned run is detached, since Modal ends any other app some minutes after it has lost the connection to its
client, for example while a laptop is suspended.
"""

from __future__ import annotations

import asyncio

import modal

from skyrl_modal.backends.modal.errors import error_text, is_client_error, suppressed_client_errors
from skyrl_modal.protocol.leases import LEASE_DICT, caller_interval, caller_key, caller_value

#: Seconds for the first request. Without a reply the run starts without a lease.
FIRST_REQUEST_TIMEOUT = 20.0


class CallerLease:
    """The lease on one run.

    It is only written here, and never read: Modal's client unpickles what it reads.

    Args:
        run_id: The run.
        seconds: How long it is valid after a renewal.
    """

    def __init__(self, run_id: str, seconds: float) -> None:
        self.seconds = seconds
        self._key = caller_key(run_id)
        self._count = 0
        self._dict = modal.Dict.from_name(LEASE_DICT, create_if_missing=True)

    async def begin(self) -> str | None:
        """Write the entry. Return a message about the failure; None if there was none."""
        try:
            async with asyncio.timeout(FIRST_REQUEST_TIMEOUT):
                await self._write()
        except Exception as error:
            if not is_client_error(error):
                raise
            return error_text(error)
        return None

    async def renew(self) -> None:
        """Renew the lease until this task is cancelled. A renewal that fails is repeated at the next interval.

        The intervals are those of the monotonic clock, which stops while this machine is suspended: the first renewal
        follows at most one interval after it continues.

        The container removes the entry when the run has ended. One renewal is omitted then, so that the entry is not
        created again before the result arrives. If none arrives, something else has removed the entry.
        """
        interval = caller_interval(self.seconds)
        was_removed = False
        while True:
            await asyncio.sleep(interval)
            with suppressed_client_errors():
                async with asyncio.timeout(max(interval, 5.0)):
                    was_removed = not was_removed and not await self._dict.contains.aio(self._key)
                    if not was_removed:
                        await self._write()

    async def _write(self) -> None:
        self._count += 1
        await self._dict.put.aio(self._key, caller_value(self._count))
