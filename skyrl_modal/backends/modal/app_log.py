"""Modal's own lines in the log of an app: why a container has not started, preemptions, ends of containers.

They have the id of a container or a function and no id of a call, so that the log of a call does not contain them.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import modal
import modal.exception

#: How long before the submission the log is read: the clocks of two machines may differ.
CLOCK_TOLERANCE = timedelta(minutes=5)
#: Entries may arrive in another order than that of their times, by up to this time.
LATE_ENTRIES = timedelta(seconds=30)
#: Seconds for one reading. Its lines are explanations, which nothing depends on.
READ_TIMEOUT = 10.0


class AppLog:
    """The lines of Modal itself in the log of an app. Each is returned once.

    Args:
        app: The app, or its id, which needs modal 1.6.4; None if it is not known, so that there are no lines.
        submitted_at: When the call was submitted, in seconds since the epoch by this machine's clock.
    """

    def __init__(self, app: modal.App | str | None, submitted_at: float) -> None:
        self._app = app
        self._since = datetime.fromtimestamp(submitted_at, UTC) - CLOCK_TOLERANCE
        self._seen: set[tuple[datetime, str, tuple[str, ...]]] = set()

    async def read_new(self) -> list[str]:
        """Return the lines that were not returned before; none if Modal cannot be reached."""
        lines: list[str] = []
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                if isinstance(self._app, str):
                    self._app = await modal.App.lookup.aio(self._app)
                if self._app is None:
                    return []
                async for entry in self._app.logs.fetch.aio(since=self._since, source="system"):
                    key = (entry.timestamp, entry.message, tuple(entry.context_ids))
                    if key in self._seen:
                        continue
                    self._seen.add(key)
                    self._since = max(self._since, entry.timestamp - LATE_ENTRIES)
                    lines += [line.strip() for line in entry.message.splitlines() if line.strip()]
        except (modal.exception.NotFoundError, modal.exception.InvalidError):
            self._app = None  # InvalidError: clients before 1.6.4 do not accept an id
        except (modal.exception.Error, OSError, TimeoutError):
            pass  # the next reading returns them
        return lines
