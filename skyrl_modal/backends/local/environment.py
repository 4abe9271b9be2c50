"""Variables that a run on this machine has in addition to those of the caller."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Mapping

from skyrl_modal.errors import SpecError
from skyrl_modal.machine import complete_path
from skyrl_modal.protocol.job import Job

_MIN_BYTES, _MAX_BYTES = 128 * 1024, 6 * 1024 * 1024
#: Bytes of the variables that the run sets, and of the other arguments.
_MARGIN_BYTES = 16 * 1024


def inherited_environment() -> dict[str, str]:
    """Return the variables of this process that a run inherits: all except for the address of the caller's own Ray."""
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


def path_of_run(job: Job) -> str:
    """Return the PATH of the command of a run that this process starts."""
    base = search_path(os.environ)
    if "PATH" not in job.env:
        return base
    return complete_path(job.env["PATH"], base=base, needs_ray=job.ray is not None)


def check_environment_size(job: Job) -> None:
    """Check that this machine can pass the command's variables, with those of this process, to a program.

    The limit is that of execve(2): a quarter of the limit on the stack, at most 6 MiB and at least 128 KiB, for all
    arguments and variables with their null bytes and a pointer to each.

    Raises:
        SpecError: They are too large together.
    """
    ray_env = {} if job.ray is None else job.ray.env
    env = {**os.environ, **job.env, **ray_env}
    size = sum(len(os.fsencode(name)) + len(os.fsencode(value)) + 2 + 8 for name, value in env.items())
    stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
    limit = _MAX_BYTES if stack == resource.RLIM_INFINITY else min(max(stack // 4, _MIN_BYTES), _MAX_BYTES)
    limit -= min(len(os.fsencode(job.command)), _MIN_BYTES) + _MARGIN_BYTES
    if size > limit:
        raise SpecError(
            "env",
            f"{size:,} bytes",
            f"this machine permits {limit:,} bytes for the variables of the command, by its limit on the stack "
            "(`ulimit -s`). This process has a part of them itself. Write large values to files",
        )


def search_path(env: Mapping[str, str]) -> str:
    """Return the PATH of a run: the programs of the caller's Python are first, also if its environment is not active.

    Args:
        env: The caller's environment.
    """
    return os.path.dirname(sys.executable) + os.pathsep + env.get("PATH", os.defpath)
