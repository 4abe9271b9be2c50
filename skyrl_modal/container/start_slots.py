"""Slots to start Ray: only as many runs of one user as this machine has CPUs start their Ray at the same time.

A slot is a file in a folder of the user, which the run locks. Other users can neither lock it nor remove it, and the
kernel releases the lock when the process exits.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time

from skyrl_modal.container.event_router import EventRouter
from skyrl_modal.container.events import StopRequested
from skyrl_modal.container.failures import Report, RunStopped
from skyrl_modal.protocol.rank_config import RankConfig

#: Seconds between two attempts to claim slots. There is no event for it.
START_SLOT_INTERVAL = 0.1
#: The part of ``start_timeout`` after which a run starts its Ray without a slot.
START_SLOT_FRACTION = 0.5


def wait_for_start_slots(
    config: RankConfig, events: EventRouter, report: Report, timeout: float
) -> contextlib.ExitStack:
    """Wait until not too many other runs start their Ray on this machine, and return the claim of the slots.

    Args:
        config: This rank.
        events: The events of the run, of which stop requests end the wait.
        report: Receives messages.
        timeout: Seconds after which the run starts without slots.

    Raises:
        RunStopped: The run was asked to stop.
    """
    end = time.monotonic() + timeout
    is_reported = False
    while (slots := claim_start_slots(config.start_slots_fd, config.nodes)) is None:
        if not is_reported:
            is_reported = True
            report("waiting for other runs on this machine to start their Ray")
        if time.monotonic() >= end:
            report(f"other runs are still starting their Ray after {timeout:g} s; starting this one too")
            return contextlib.ExitStack()
        deadline = min(end, time.monotonic() + START_SLOT_INTERVAL)
        event = events.wait_for(lambda event: isinstance(event, StopRequested), deadline)
        if isinstance(event, StopRequested):
            raise RunStopped(event.reason)
    return slots


def claim_start_slots(folder: int | None, count: int) -> contextlib.ExitStack | None:
    """Claim slots to start Ray nodes on this machine. There are as many slots as CPUs, but at least two.

    A Ray node that is not up after 30 seconds exits (ray/_private/node.py), and many nodes that start at the same time
    take longer than that.

    Args:
        folder: A descriptor of the folder with the files of the slots; None if no other run starts on this machine. If
            it was removed, or its file system has no locks, the number of starts is not limited.
        count: Number of nodes to start. If it exceeds the number of slots, all slots are claimed.

    Returns:
        The claims, which are to be closed when the nodes are up. None if too few slots are free now.
    """
    if folder is None:
        return contextlib.ExitStack()
    total = max(2, os.cpu_count() or 1)
    missing = min(count, total)
    with contextlib.ExitStack() as claims:
        for number in range(total):
            try:
                descriptor = _lock(folder, f"slot-{number}")
            except OSError:
                return claims.pop_all()
            if descriptor is not None:
                claims.callback(os.close, descriptor)
                missing -= 1
                if not missing:
                    return claims.pop_all()
    return None


def _lock(folder: int, name: str) -> int | None:
    """Return a descriptor that locks a file, which is created if it does not exist; None if it is locked already."""
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return descriptor
