"""Limits of the kernel on processes and memory of the sandbox, where this user may set them: control groups."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

#: Seconds between the attempts to remove a group.
_REMOVAL_DELAYS = (0.005, 0.02, 0.1, 0.4)
_MOUNT = Path("/sys/fs/cgroup")
#: The files with the limits, by the controller's folder: "" is that of version 2 (cgroups(7)).
_LIMIT_FILES = {
    "": {"pids.max": "processes", "memory.max": "memory", "memory.swap.max": "none"},
    "pids": {"pids.max": "processes"},
    "memory": {"memory.limit_in_bytes": "memory"},
}


@contextlib.contextmanager
def limited_groups(*, processes: int, memory_bytes: int) -> Iterator[list[Path]]:
    """Create control groups with limits, and remove them at the end. Most users may create none.

    Args:
        processes: The limit on the number of processes.
        memory_bytes: The limit on their memory.

    Yields:
        The files to which a process writes its id to enter the groups.
    """
    groups = []
    try:
        for controller, files in _LIMIT_FILES.items():
            values = {"processes": str(processes), "memory": str(memory_bytes), "none": "0"}
            group = _create_group(controller, {name: values[kind] for name, kind in files.items()})
            if group is not None:
                groups.append(group)
        yield [group / "cgroup.procs" for group in groups]
    finally:
        for group in groups:
            _remove_group(group)


def _remove_group(group: Path) -> None:
    for delay in (*_REMOVAL_DELAYS, None):
        try:
            group.rmdir()
        except OSError:  # its processes have been killed, but the kernel has not removed them yet
            if delay is not None:
                time.sleep(delay)  # there is no event for it
        else:
            return


def _create_group(controller: str, limits: dict[str, str]) -> Path | None:
    """Create a group below that of this process; None if this is not possible, or no limit can be set."""
    parent = _own_group(controller)
    if parent is None or not os.access(parent, os.W_OK):
        return None
    try:
        group = Path(tempfile.mkdtemp(prefix="skyrl-modal-", dir=parent))
    except OSError:
        return None
    # The folder is on another file system if version 2 is mounted elsewhere.
    is_group = (group / "cgroup.procs").exists()
    if not is_group or not [name for name, value in limits.items() if _write(group / name, value)]:
        group.rmdir()
        return None
    return group


def _own_group(controller: str) -> Path | None:
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == controller:  # that of version 2 has no name
            return _MOUNT / controller / path.lstrip("/")
    return None


def _write(path: Path, value: str) -> bool:
    try:
        path.write_text(value, encoding="ascii")
    except OSError:  # the controller is not enabled here
        return False
    return True


def enter_groups(argv: Sequence[str], members: Sequence[Path]) -> list[str]:
    """Return the arguments that run a program in groups."""
    if not members:
        return list(argv)
    script = " ".join(f"echo $$ >{member};" for member in members)
    return ["/bin/sh", "-c", f'{script} exec "$@"', "sh", *argv]
