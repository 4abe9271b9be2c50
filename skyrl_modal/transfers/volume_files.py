"""Files on volumes: lists, reads, measures and removes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from skyrl_modal.dataclass import dataclass
from skyrl_modal.errors import SpecError
from skyrl_modal.protocol.state import VolumeEntryKind
from skyrl_modal.transfers.locations import (
    container_path,
    expand,
    find_volume,
    holds_records,
    in_container,
    missing_path,
)
from skyrl_modal.transfers.patterns import is_pattern

if TYPE_CHECKING:
    from skyrl_modal.backends import Backend, VolumeEntry
    from skyrl_modal.spec.bucket import AnyVolume


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """The size of a file or folder on a volume.

    Attributes:
        path: Its path in the container.
        bytes: The size of all files.
        files: Number of files.
        entries: The same for each file and folder in the folder, sorted by name; empty for a file.
    """

    path: str
    bytes: int
    files: int
    entries: Sequence[DiskUsage] = ()


def list_path(backend: Backend, volumes: Sequence[AnyVolume], path: str) -> list[VolumeEntry]:
    """List a folder, a file, or what matches a pattern: a folder that matches is one entry."""
    if not is_pattern(path):
        volume, inside = find_volume(volumes, path)
        return [in_container(volume, entry) for entry in backend.ls(volume, inside)]
    found: list[VolumeEntry] = []
    listed: dict[str, dict[str, VolumeEntry]] = {}
    for volume, inside in expand(backend, volumes, path):
        parent, _, name = inside.rpartition("/")
        if parent not in listed:
            listed[parent] = {entry.path.rpartition("/")[2]: entry for entry in backend.ls(volume, parent)}
        if name in listed[parent]:
            found.append(in_container(volume, listed[parent][name]))
    return found


def read(backend: Backend, volumes: Sequence[AnyVolume], path: str) -> Iterator[bytes]:
    """Yield the content of a file in pieces."""
    volume, inside = find_volume(volumes, path)
    return backend.read(volume, inside)


def remove(
    backend: Backend,
    volumes: Sequence[AnyVolume],
    path: str,
    *,
    recursive: bool,
    force: bool,
    dry_run: bool = False,
) -> list[str]:
    """Remove a file or folder, or what matches a pattern. Return the paths in the container.

    Everything is checked before anything is removed.

    Raises:
        SpecError: It is a folder and ``recursive`` is False; or the root of a volume or the records of runs, and
            ``force`` is False.
        PathNotFound: There is no such path, or nothing matches the pattern.
    """
    found = expand(backend, volumes, path)
    for volume, inside in found:
        where = container_path(volume, inside)
        kind = backend.kind(volume, inside, follow_links=False)
        if kind is None:
            raise missing_path(volume, inside)
        if kind is VolumeEntryKind.FOLDER and not recursive:
            raise SpecError("path", where, "it is a folder. Pass recursive=True (rm -r) to remove it with its content")
        if holds_records(inside) and not force:
            what = f"everything on the volume {volume.name}" if not inside else "the records and logs of runs"
            raise SpecError("path", where, f"this would remove {what}. Pass force=True (rm --force) to do so")
    if not dry_run:
        for volume, inside in found:
            backend.remove(volume, inside, recursive=recursive)
    return [container_path(volume, inside) for volume, inside in found]


def measure(backend: Backend, volumes: Sequence[AnyVolume], path: str) -> DiskUsage:
    """Return the size of a file or folder, and of what is in the folder. Links are not followed."""
    volume, inside = find_volume(volumes, path)
    sizes: dict[str, list[int]] = {}
    is_file = False
    prefix = f"{inside}/" if inside else ""
    for entry in backend.walk(volume, inside):
        is_file = entry.path == inside
        name = entry.path.removeprefix(prefix).split("/")[0]
        found = sizes.setdefault(name, [])
        if entry.type is VolumeEntryKind.FILE:
            found.append(entry.size)
    where = container_path(volume, inside)
    children = [DiskUsage(f"{where}/{name}", sum(found), len(found)) for name, found in sorted(sizes.items())]
    total, files = sum(child.bytes for child in children), sum(child.files for child in children)
    return DiskUsage(where, total, files, () if is_file else children)
