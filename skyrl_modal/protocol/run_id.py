"""The ids of runs."""

from __future__ import annotations

import os
from datetime import UTC, datetime


def new_run_id() -> str:
    """Return a new run id: the current second in UTC, then random digits. Ids sort by time.

    Example:
        >>> len(new_run_id())
        22
    """
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.urandom(3).hex()}"
