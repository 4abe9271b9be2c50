"""Paths of the container that cannot be mount points on this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from skyrl_modal.backends.local.environment import path_of_run
from skyrl_modal.errors import SpecError
from skyrl_modal.machine import find_ray
from skyrl_modal.protocol.job import Job
from skyrl_modal.spec.container_paths import REMEDY, find_needed
from skyrl_modal.spec.fields import is_below


def check_mount_points(job: Job) -> None:
    """Check that the paths of mounts, volumes and buckets can be mount points, and hide nothing that the run needs.

    Paths that no machine permits are refused by the specs. This checks what depends on this machine: its files, its
    symbolic links, and where its Python, its Ray and this package are.

    Raises:
        SpecError: A path is, or leads through, something other than a folder; or the run would not find its programs.
    """
    paths = [("remote_path", mount.remote_path) for mount in job.mounts]
    paths += [("mount_path", path) for path in job.storage_paths]
    needed = list(_needed_folders(job))
    for field, path in paths:
        # The run has a /tmp of its own, so the files and links in this machine's are not on the path.
        target = path if is_below(path, "/tmp") else _resolve(field, path)
        for name, folder in needed:
            if is_below(folder, target) or is_below(target, folder):
                raise SpecError(field, path, f"the run needs {name} in {folder} on this machine; {REMEDY}")


def _resolve(field: str, path: str) -> str:
    """Return the path to which the links on a path lead."""
    file = _file_on_path(path)
    if file is not None:
        raise SpecError(field, path, f"{file} exists on this machine and is no folder; pass another path")
    target = os.path.realpath(path)
    if target == path:
        return target
    needed = "all files" if target == "/" else find_needed(target)
    if needed is not None:
        raise SpecError(field, path, f"it leads to {target} on this machine, and the run needs {needed}; {REMEDY}")
    return target


def _needed_folders(job: Job) -> Iterator[tuple[str, str]]:
    """Yield the folders of this machine from which a run starts programs, resolved, with a name."""
    yield "this package", os.path.realpath(Path(__file__).parents[2])
    for prefix in dict.fromkeys((sys.prefix, sys.base_prefix)):
        for part in ("bin", "lib"):
            yield "Python", os.path.realpath(os.path.join(prefix, part))
    if job.ray is not None:
        ray = find_ray(path_of_run(job))
        if ray is not None:
            yield "Ray", os.path.dirname(os.path.realpath(ray.program))
            yield "Ray", os.path.realpath(Path(ray.python).parent.parent / "lib")


def _file_on_path(path: str) -> str | None:
    """Return the path, or the part of it, that exists and is no folder; None if there is none."""
    part = path
    while part != "/" and not os.path.lexists(part):
        part = os.path.dirname(part)
    return None if os.path.isdir(part) else part
