"""Volumes of the local backend: folders of this user that are kept between runs."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from skyrl_modal.backends.base import VolumeEntry
from skyrl_modal.backends.contained_paths import PathOutside, resolve_below
from skyrl_modal.backends.file_tree import LinkRules, SkippedEntries, copy_item
from skyrl_modal.backends.transfer import staged_transfer, storage_errors
from skyrl_modal.errors import PathNotFound, SpecError
from skyrl_modal.protocol.state import VolumeEntryKind
from skyrl_modal.user_folders import create_user_folder, data_folder

if TYPE_CHECKING:
    from skyrl_modal.spec.volume import VolumeSpec


def volume_folder(name: str) -> Path:
    """Return the folder of a volume."""
    return data_folder() / "volumes" / name


def list_folder(volume: VolumeSpec, path: str) -> Sequence[VolumeEntry]:
    """Return the entries of a folder of a volume. For a file, return one entry.

    A symbolic link counts as what it leads to on the volume, as in the container.

    Raises:
        PathNotFound: There is no such volume or path.
        SpecError: The path leads out of the volume.
        StorageError: The folder cannot be read.
    """
    place = _existing_path(volume, path)
    root = _root(volume)
    entries = []
    with storage_errors(place):
        items = sorted(place.iterdir()) if place.is_dir() else [place]
    for item in items:
        inside = item.relative_to(root).as_posix()
        try:
            status = resolve_below(root, inside, _aliases(volume)).lstat()
        except (OSError, PathOutside):  # a link that leads nowhere or out of the volume, or removed meanwhile
            if not item.is_symlink():
                continue
            status = None
        entries.append(_entry(inside, status))
    return entries


def _entry(path: str, status: os.stat_result | None) -> VolumeEntry:
    if status is None:
        return VolumeEntry(path, VolumeEntryKind.OTHER, 0, 0.0)
    if stat.S_ISDIR(status.st_mode):
        return VolumeEntry(path, VolumeEntryKind.FOLDER, 0, status.st_mtime)
    kind = VolumeEntryKind.FILE if stat.S_ISREG(status.st_mode) else VolumeEntryKind.OTHER
    return VolumeEntry(path, kind, status.st_size, status.st_mtime)


def copy_from_volume(volume: VolumeSpec, path: str, local: Path) -> Sequence[str]:
    """Copy a file or folder from a volume to this machine in one step.

    Returns:
        Messages about entries that were not copied.

    Raises:
        PathNotFound: There is no such volume or path.
        SpecError: The path leads out of the volume.
        StorageError: A file cannot be read or written, or is neither a file nor a folder. The target is unchanged.
    """
    source = _existing_path(volume, path)
    rules = LinkRules(root=_root(volume), tree=source, aliases=_aliases(volume), with_contents=True)
    return _copy(source, local, rules)


def copy_to_volume(volume: VolumeSpec, local: Path, path: str) -> Sequence[str]:
    """Copy a file or folder from this machine to a volume in one step. A folder on the volume receives a file.

    The volume is created if it does not exist.

    Returns:
        Messages about entries that were not copied.

    Raises:
        PathNotFound: The volume does not exist, and is not to be created.
        SpecError: The path leads out of the volume.
        StorageError: A file cannot be read or written, or is neither a file nor a folder. The target is unchanged.
    """
    folder = volume_folder(volume.name)
    if not folder.is_dir() and not volume.create_if_missing:
        raise PathNotFound(f"there is no volume {volume.name}, and create_if_missing is False")
    create_user_folder(folder)
    target = _target_path(volume, path)
    source = local.resolve()
    if target.is_dir() and not source.is_dir():
        target /= local.name or source.name
    rules = LinkRules(root=source, tree=source, aliases=[str(source)], kept_below=[volume.mount_path])
    return _copy(source, target, rules)


def _copy(source: Path, target: Path, rules: LinkRules) -> Sequence[str]:
    skipped = SkippedEntries()
    with staged_transfer(target) as staged:
        copy_item(source, staged, rules, skipped)
    return skipped.warnings()


def _root(volume: VolumeSpec) -> Path:
    return volume_folder(volume.name).resolve()


def _aliases(volume: VolumeSpec) -> list[str]:
    """Return the paths of a volume: in the container, and on this machine for runs without namespaces."""
    folder = volume_folder(volume.name)
    return [volume.mount_path, str(folder), str(folder.resolve())]


def _existing_path(volume: VolumeSpec, path: str) -> Path:
    place = path_on_volume(volume, path)
    if not os.path.lexists(place):
        raise PathNotFound(f"volume {volume.name} has no {path or '/'}")
    return place


def _target_path(volume: VolumeSpec, path: str) -> Path:
    """Return the path to write to. A link to a folder on the volume is followed; any other link is to be replaced."""
    resolved = path_on_volume(volume, path)
    parent, name = posixpath.split(path.strip("/"))
    if not name or resolved.is_dir():
        return resolved
    return path_on_volume(volume, parent) / name


def path_on_volume(volume: VolumeSpec, path: str) -> Path:
    """Return the real path of a path on a volume, which need not exist.

    Raises:
        SpecError: It leads out of the volume.
    """
    try:
        return resolve_below(_root(volume), path, _aliases(volume))
    except PathOutside as error:
        raise SpecError("path", path, f"it is outside of the volume {volume.name}: {error}") from error
