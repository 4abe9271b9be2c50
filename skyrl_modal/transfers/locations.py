"""Paths in the container, and the volumes that they are on."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from typing import TYPE_CHECKING

from skyrl_modal.dataclass import replace
from skyrl_modal.errors import PathNotFound, SpecError
from skyrl_modal.spec.bucket import kind_of
from skyrl_modal.spec.container_paths import RECORDS_FOLDER
from skyrl_modal.spec.fields import is_below
from skyrl_modal.transfers.patterns import expand_on_volume

if TYPE_CHECKING:
    from skyrl_modal.backends import Backend, VolumeEntry
    from skyrl_modal.spec.bucket import AnyVolume


def find_volume(volumes: Sequence[AnyVolume], path: str) -> tuple[AnyVolume, str]:
    """Return the volume that contains a path in the container, and the path on it.

    Raises:
        SpecError: It is on none of them.
    """
    if "\0" in path:
        raise SpecError("path", path, "it contains a null character")
    normal = posixpath.normpath(path)
    for volume in sorted(volumes, key=lambda volume: -len(volume.mount_path)):
        if is_below(normal, volume.mount_path):
            return volume, normal.removeprefix(volume.mount_path).lstrip("/")
    paths = ", ".join(volume.mount_path for volume in volumes) or "none"
    raise SpecError("path", path, f"it is on none of this launcher's volumes ({paths})")


def expand(backend: Backend, volumes: Sequence[AnyVolume], path: str) -> list[tuple[AnyVolume, str]]:
    """Return the volume and the path on it of everything that a path or pattern stands for.

    Raises:
        SpecError: It is on none of the volumes.
        PathNotFound: Nothing matches the pattern.
    """
    volume, inside = find_volume(volumes, path)
    return [(volume, found) for found in expand_on_volume(backend, volume, inside)]


def container_path(volume: AnyVolume, inside: str) -> str:
    """Return the path in the container of a path on a volume."""
    return posixpath.join(volume.mount_path, inside) if inside else volume.mount_path


def missing_path(volume: AnyVolume, inside: str) -> PathNotFound:
    """Return the error about a path on a volume that does not exist."""
    if not inside:
        return PathNotFound(f"there is no {kind_of(volume)} {volume.name}. A run or `push` creates it")
    parent = posixpath.dirname(container_path(volume, inside))
    where = f"{container_path(volume, inside)} ({kind_of(volume)} {volume.name})"
    return PathNotFound(f"there is no {where}. `skyrl-modal ls {parent}` lists what is there")


def in_container(volume: AnyVolume, entry: VolumeEntry) -> VolumeEntry:
    """Return an entry with its path in the container."""
    return replace(entry, path=posixpath.join(volume.mount_path, entry.path))


def holds_records(inside: str) -> bool:
    """Return whether a path on a volume is, contains or is in the folder with the records of runs.

    Example:
        >>> holds_records(""), holds_records(".skyrl_modal/runs"), holds_records("ckpts")
        (True, True, False)
    """
    return not inside or is_below(inside, RECORDS_FOLDER)
