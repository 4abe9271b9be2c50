"""Whether the command ended the run's Ray itself, by ``ray stop``."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection
from dataclasses import replace

from skyrl_modal.container.failures import Failure
from skyrl_modal.protocol.state import FailureCause

#: A call in the command. It is compiled when Ray has exited.
_CALL = r"(?m)(?:^|[\s;&|(])ray\s+stop(?![\w-])"
_SUMMARY = (
    "the command called `ray stop`, which ended the run's own Ray. Remove the call: each run has a Ray of its own, "
    "which the launcher starts and ends"
)


def explain_ray_exit(failure: Failure | None, command: str, processes: Callable[[], Collection[int]]) -> Failure | None:
    """Return the failure of a Ray that has exited, with ``ray stop`` as its cause if the command called it.

    Args:
        failure: A failure; None for none.
        command: The command.
        processes: Returns the command's living processes. ``ray stop`` is one of them for seconds after Ray has exited.
    """
    if failure is None or failure.cause is not FailureCause.RAY_EXITED:
        return failure
    if any(_is_ray_stop(pid) for pid in processes()) or re.search(_CALL, command):
        return replace(failure, cause=FailureCause.RAY_STOPPED, summary=_SUMMARY, detail="")
    return failure


def _is_ray_stop(pid: int) -> bool:
    """Return whether a process is ``ray stop``: a script that Python runs, so it may be the second argument."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            arguments = file.read(4096).split(b"\0")
    except OSError:  # it has exited, or the system has no /proc
        return False
    names = [argument.rpartition(b"/")[2] for argument in arguments]
    return (b"ray", b"stop") in itertools.pairwise(names[:4])
