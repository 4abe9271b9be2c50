"""Removal of half-written files when a run starts."""

from __future__ import annotations

import contextlib
import time

from skyrl_modal.backends.staging import remove_abandoned_transfers
from skyrl_modal.run.index import RunIndex

#: Limit for the removal of half-written files when a run starts. The next start continues.
AUTOMATIC_SECONDS = 2.0


def remove_half_written() -> None:
    """Remove the half-written files of killed processes, within a time limit. Errors are ignored.

    Each start of a run calls it. Scratch folders and snapshots are limited by the local backend and by the store.
    """
    with contextlib.suppress(OSError):
        remove_abandoned_transfers(time.monotonic() + AUTOMATIC_SECONDS)
        for path in RunIndex().unfinished_files():
            path.unlink(missing_ok=True)
