"""The lock of a run on this machine: as long as any process of the run exists, it is held.

The lock's file is in the run's state folder, which this user's processes find by the run's id alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from skyrl_modal import user_folders


def state_folder(run_id: str) -> Path:
    """Return the folder with what this machine keeps about a run: its lock, and the stderr of its supervisors."""
    return user_folders.state_folder() / "runs" / run_id


def lock_file(run_id: str) -> Path:
    """Return the file whose lock the run holds."""
    return state_folder(run_id) / "alive"


def start_slots_folder() -> Path:
    """Return the folder with the files that limit how many runs start their Ray at the same time."""
    return user_folders.state_folder() / "start-slots"


def supervisor_stderr(run_id: str, rank: int) -> Path:
    """Return the file that receives the stderr of a rank's supervisor."""
    return state_folder(run_id) / ("supervisor.err" if rank == 0 else f"supervisor-{rank}.err")


def is_run_alive(run_id: str) -> bool:
    """Return whether a run on this machine is active, or is being started."""
    return is_lock_held(lock_file(run_id))


def is_lock_held(path: Path) -> bool:
    """Return whether a process holds the lock of a run."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # A shared lock, so that two processes that check at the same time do not mistake each other for the run.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def wait_for_run_end(run_id: str) -> None:
    """Wait until no process of a run exists. Signal handlers do not run meanwhile."""
    try:
        descriptor = os.open(lock_file(run_id), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def remove_state(run_id: str) -> None:
    """Remove what this machine keeps about a run that has ended, except its logs and results."""
    folder = state_folder(run_id)
    if is_run_alive(run_id):
        return
    with contextlib.suppress(OSError):
        for path in folder.glob("supervisor*.err"):
            if path.stat().st_size == 0:
                path.unlink()
        lock_file(run_id).unlink(missing_ok=True)
        folder.rmdir()  # fails if it has a log or a result
