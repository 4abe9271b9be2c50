"""The lease of this process on a run that it owns: the run's container stops the run if the lease has expired.

The app of an owned run is detached, since Modal ends any other app some minutes after it has lost the connection to its
client, for example while a laptop is suspended.
"""

from __future__ import annotations

import asyncio
import contextlib

import modal
import modal.exception

from skyrl_modal.backends.modal.errors import error_text
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
        except (modal.exception.Error, OSError) as error:  # TimeoutError is an OSError
            return error_text(error)
        return None

    async def renew(self) -> None:
        """Renew the lease until this task is cancelled. A renewal that fails is repeated at the next interval.

        The intervals are those of the monotonic clock, which stops while this machine is suspended: the first renewal
        follows at most one interval after it continues.
        """
        interval = caller_interval(self.seconds)
        while True:
            await asyncio.sleep(interval)
            with contextlib.suppress(modal.exception.Error, OSError):
                async with asyncio.timeout(max(interval, 5.0)):
                    await self._write()

    async def _write(self) -> None:
        self._count += 1
        await self._dict.put.aio(self._key, caller_value(self._count))
