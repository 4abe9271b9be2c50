"""Whether the command ended the run's Ray itself, by ``ray stop``."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection

from skyrl_modal.container.failures import Failure
from skyrl_modal.container.process_tree import descendants
from skyrl_modal.dataclass import replace
from skyrl_modal.protocol.state import FailureCause

TYPE_CHECKING = False  # the same as in typing, whose import takes time

if TYPE_CHECKING:
    from pathlib import Path

#: A call in the command. It is compiled when Ray has exited.
_CALL = r"(?m)(?:^|[\s;&|(])ray\s+stop(?![\w-])"
_REMEDY = "Remove the call: each run has a Ray of its own, which the launcher starts and ends"
_SUMMARY = f"the command called `ray stop`, which ended the run's own Ray. {_REMEDY}"
#: What a raylet logs when SIGTERM ends it, and the bytes at the end of its log in which it is searched for.
_TERMINATED, _LOG_BYTES = b'reason_message: "received SIGTERM"', 1 << 16


def ray_exit_failure(summary: str, log_tail: str, rank: int, *, is_stopped: bool) -> Failure:
    """Return the failure of a Ray node that has exited while the command ran.

    Args:
        summary: What has exited.
        log_tail: The last lines of the node's logs.
        rank: Its rank.
        is_stopped: Whether ``ray stop`` ran on the node when it exited, or the node was ended as by ``ray stop``.
    """
    if not is_stopped:
        return Failure(FailureCause.RAY_EXITED, summary, log_tail, rank)
    text = f"rank {rank}: Ray was ended by SIGTERM, which `ray stop` sends. {_REMEDY}"
    return Failure(FailureCause.RAY_STOPPED, text, rank=rank)


def explain_ray_exit(failure: Failure | None, command: str, processes: Callable[[], Collection[int]]) -> Failure | None:
    """Return the failure of a Ray that has exited, with ``ray stop`` as its cause if the command called it.

    Args:
        failure: A failure; None for none.
        command: The command.
        processes: Returns the command's living processes. ``ray stop`` is one of them for seconds after Ray has exited.
    """
    if failure is None or failure.cause not in (FailureCause.RAY_EXITED, FailureCause.RAY_STOPPED):
        return failure
    import re

    if any(_is_ray_stop(pid) for pid in processes()) or re.search(_CALL, command):
        return replace(failure, cause=FailureCause.RAY_STOPPED, summary=_SUMMARY, detail="")
    return failure


def is_ray_stop_running() -> bool:
    """Return whether this rank's part of the command, such as a task of Ray, runs ``ray stop`` now."""
    return any(map(_is_ray_stop, descendants(os.getpid())))


def was_terminated(log: Path) -> bool:
    """Return whether SIGTERM ended a raylet, by the end of its log (text of Ray 2.60, src/ray/raylet/main.cc).

    ``ray stop`` sends it. In a task of Ray, ``ray stop`` is itself ended by the raylet that it ends.

    Args:
        log: The file raylet.out.
    """
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_BYTES))
            return _TERMINATED in file.read(_LOG_BYTES)
    except OSError:
        return False


def _is_ray_stop(pid: int) -> bool:
    """Return whether a process is ``ray stop``: a script that Python runs, so it may be the second argument."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            arguments = file.read(4096).split(b"\0")
    except OSError:  # it has exited, or the system has no /proc
        return False
    names = [argument.rpartition(b"/")[2] for argument in arguments]
    return (b"ray", b"stop") in itertools.pairwise(names[:4])
