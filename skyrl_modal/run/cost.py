"""What a run has cost, by the records in its folder."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from skyrl_modal.protocol.codec import ProtocolError, from_json
from skyrl_modal.protocol.usage import USAGE_FILE, UsageRecord, cost_of

if TYPE_CHECKING:
    from skyrl_modal.backends import Execution
    from skyrl_modal.protocol.job import Job


def cost_until_now(job: Job, execution: Execution) -> float | None:
    """Return what a run that has not ended has cost until now, in US dollars; None if its rate is not known.

    Containers that had not ended by the last record are counted until now, by this machine's clock.
    """
    usage = _read_usage(execution)
    if job.rate is None:
        return None
    return 0.0 if usage is None else cost_of(job.rate, usage.seconds_at(time.time()))


def cost_of_lost_run(job: Job, execution: Execution) -> float | None:
    """Return what a run that left no result has cost, as far as its last record shows it; None if nothing shows it."""
    usage = _read_usage(execution)
    return None if usage is None or job.rate is None else cost_of(job.rate, usage.seconds)


def _read_usage(execution: Execution) -> UsageRecord | None:
    """Return the last record; None if there is none, or if it is damaged: a volume can be written by others."""
    try:
        return from_json(UsageRecord, execution.read_file(USAGE_FILE))
    except (OSError, ProtocolError):
        return None
