"""The caller's part of ``start_deadline``: a call that no container has started is cancelled at the deadline.

As soon as there is a container, it applies the deadline itself. It also does so if it starts after the caller has
exited.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

from skyrl_modal.backends.modal.call import ModalCall
from skyrl_modal.backends.modal.errors import TRANSIENT_ERRORS
from skyrl_modal.backends.modal.retry import MAX_POLL_INTERVAL
from skyrl_modal.protocol.result import RunResultRecord
from skyrl_modal.protocol.start_deadline import start_deadline_result, submission_time
from skyrl_modal.protocol.state import RunState

#: Seconds between two looks at the clock at most. The clock of an event loop does not count the time in which the
#: machine is suspended.
MAX_SLEEP = 30.0


class DeadlineCall(ModalCall):
    """A call that is cancelled if no container has started by the run's deadline. See ``ModalCall`` for arguments."""

    _is_late = False

    async def _wait_for_end(self) -> RunResultRecord:
        """Like ``ModalCall``; while it waits, apply the deadline."""
        if self._job.limits.start_deadline is None:
            return await super()._wait_for_end()
        enforcing = asyncio.ensure_future(self._enforce(self._job.limits.start_deadline))
        try:
            record = await super()._wait_for_end()
        finally:
            enforcing.cancel()
        if not self._is_late or record.state is not RunState.CANCELLED:
            return record
        self._is_result_missing = True
        return start_deadline_result(self._job, record)

    async def is_late(self) -> bool:
        """Return whether the deadline has passed without a container. Then ``wait`` cancels the call."""
        deadline = self._job.limits.start_deadline
        if deadline is None or time.time() < submission_time(self._job) + deadline:
            return False
        with contextlib.suppress(*TRANSIENT_ERRORS):
            return not await self._has_container()
        return False

    async def _enforce(self, deadline: float) -> None:
        """Cancel the call at the deadline, unless a container has started."""
        while (seconds := submission_time(self._job) + deadline - time.time()) > 0:
            await asyncio.sleep(min(seconds, MAX_SLEEP))
        while True:
            with contextlib.suppress(*TRANSIENT_ERRORS):
                if not self._is_late and (self._is_cancelled or await self._has_container()):
                    return
                self._is_late = True
                await self.cancel(now=False, retry=False)
                return
            await asyncio.sleep(MAX_POLL_INTERVAL)

    async def _wait_for_stored_result(self) -> tuple[RunResultRecord | None, bool]:
        """Like ``ModalCall``. A call that no container has started leaves no result that could be waited for."""
        if self._is_late and await self._folder.read_status() is None:
            return await self._folder.read_result(), False
        return await super()._wait_for_stored_result()

    async def _has_container(self) -> bool:
        """Return whether the volume or the call's log shows that a container has started."""
        if await self._folder.read_status() is not None:
            return True
        async for _ in self.logs.tail.aio(entries=1):
            return True
        return False
