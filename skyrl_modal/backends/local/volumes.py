"""Volumes and buckets of the local backend: folders of this user that are kept between runs."""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from skyrl_modal.backends.base import VolumeEntry
from skyrl_modal.backends.contained_paths import PathOutside, resolve_below
from skyrl_modal.backends.file_tree import LinkRules, walk_tree
from skyrl_modal.backends.local.tree_copy import copy_item
from skyrl_modal.backends.local.volume_folder import storage_folder
from skyrl_modal.backends.storage import storage_errors
from skyrl_modal.backends.temporary_folders import remove_tree
from skyrl_modal.backends.transfer_options import TransferOptions
from skyrl_modal.errors import PathNotFound, SpecError, StorageError
from skyrl_modal.protocol.run_folder import open_regular_file
from skyrl_modal.protocol.state import VolumeEntryKind
from skyrl_modal.spec.volume import VolumeSpec
from skyrl_modal.user_folders import create_user_folder

if TYPE_CHECKING:
    from skyrl_modal.spec.bucket import AnyVolume


#: Bytes that are read at a time.
_READ_SIZE = 1 << 20


def list_folder(volume: AnyVolume, path: str) -> Sequence[VolumeEntry]:
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


def find_kind(volume: AnyVolume, path: str, *, follow_links: bool) -> VolumeEntryKind | None:
    """Return what a path of a volume is; None if there is no such volume or path.

    A link that leads nowhere, or is not followed, is of another kind than a file or a folder.

    Raises:
        SpecError: The path leads out of the volume.
    """
    parent, name = posixpath.split(path)
    places = [path_on_volume(volume, path)] if follow_links else []
    if name:
        places.append(path_on_volume(volume, parent) / name)
    for place in places:
        with contextlib.suppress(OSError):
            return _entry(path, place.lstat()).type
    return VolumeEntryKind.FOLDER if not name and _root(volume).is_dir() else None


def walk_folder(volume: AnyVolume, path: str) -> Iterator[VolumeEntry]:
    """Yield all entries below a folder of a volume; for a file, the file. Symbolic links are not followed.

    Raises:
        PathNotFound: There is no such volume or path.
        SpecError: The path leads out of the volume.
        StorageError: A folder cannot be read.
    """
    place = _existing_path(volume, path)
    inside = place.relative_to(_root(volume)).as_posix()
    with storage_errors(place):
        status = place.lstat()
    if not stat.S_ISDIR(status.st_mode):
        yield _entry(inside, status)
        return
    for name, status in walk_tree(place):
        yield _entry(posixpath.join("" if inside == "." else inside, name), status)


def read_file(volume: AnyVolume, path: str) -> Iterator[bytes]:
    """Yield the content of a file of a volume in pieces.

    Raises:
        PathNotFound: There is no such volume or path.
        SpecError: The path leads out of the volume, or is a folder.
        StorageError: It is not a regular file, or cannot be read.
    """
    place = _existing_path(volume, path)
    if place.is_dir():
        raise SpecError("path", path, "it is a folder. Pass the path of a file")
    with storage_errors(place), open_regular_file(place) as file:
        while data := file.read(_READ_SIZE):
            yield data


def remove(volume: AnyVolume, path: str, *, recursive: bool) -> None:
    """Remove a file or folder of a volume. A symbolic link is removed, and not what it leads to.

    Args:
        volume: The volume.
        path: The path; the root removes what is in it, and keeps the volume.
        recursive: Whether to remove a folder with its content.

    Raises:
        PathNotFound: There is no such volume or path.
        SpecError: The path leads out of the volume, or is a folder without ``recursive``.
        StorageError: It cannot be removed.
    """
    parent, name = posixpath.split(posixpath.normpath(f"/{path}").strip("/"))
    place = _existing_path(volume, parent) / name
    try:
        mode = place.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PathNotFound(f"volume {volume.name} has no {path or '/'}") from error
    with storage_errors(place):
        if not stat.S_ISDIR(mode):
            place.unlink()
            return
        if not recursive:
            raise SpecError("path", path, "it is a folder. Pass recursive=True (rm -r) to remove it with its content")
        if name:
            _remove_folder(place)
            return
        for item in place.iterdir():
            if item.is_dir() and not item.is_symlink():
                _remove_folder(item)
            else:
                item.unlink()


def _remove_folder(folder: Path) -> None:
    if not remove_tree(folder):
        raise StorageError(str(folder), "it could not be removed completely; check its permissions")


def copy_from_volume(volume: AnyVolume, path: str, local: Path, options: TransferOptions) -> Sequence[str]:
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
    return copy_item(source, local, rules, options)


def copy_to_volume(volume: AnyVolume, local: Path, path: str, options: TransferOptions) -> Sequence[str]:
    """Copy a file or folder from this machine to a volume in one step.

    The volume is created if it does not exist.

    Returns:
        Messages about entries that were not copied.

    Raises:
        PathNotFound: The volume does not exist, and is not to be created.
        SpecError: The path leads out of the volume.
        StorageError: A file cannot be read or written, or is neither a file nor a folder. The target is unchanged.
    """
    folder = storage_folder(volume)
    if isinstance(volume, VolumeSpec) and not volume.create_if_missing and not folder.is_dir():
        raise PathNotFound(f"there is no volume {volume.name}, and create_if_missing is False")
    if not options.dry_run:
        create_user_folder(folder)
    target = _target_path(volume, path)
    source = local.resolve()
    rules = LinkRules(root=source, tree=source, aliases=[str(source)], kept_below=[volume.mount_path])
    return copy_item(source, target, rules, options)


def _root(volume: AnyVolume) -> Path:
    return storage_folder(volume).resolve()


def _aliases(volume: AnyVolume) -> list[str]:
    """Return the paths of a volume: in the container, and on this machine for runs without namespaces."""
    folder = storage_folder(volume)
    return [volume.mount_path, str(folder), str(folder.resolve())]


def _existing_path(volume: AnyVolume, path: str) -> Path:
    place = path_on_volume(volume, path)
    if not os.path.lexists(place):
        raise PathNotFound(f"volume {volume.name} has no {path or '/'}")
    return place


def _target_path(volume: AnyVolume, path: str) -> Path:
    """Return the path to write to. A link to a folder on the volume is followed; any other link is to be replaced."""
    resolved = path_on_volume(volume, path)
    parent, name = posixpath.split(path.strip("/"))
    if not name or resolved.is_dir():
        return resolved
    return path_on_volume(volume, parent) / name


def path_on_volume(volume: AnyVolume, path: str) -> Path:
    """Return the real path of a path on a volume, which need not exist.

    Raises:
        SpecError: It leads out of the volume.
    """
    try:
        return resolve_below(_root(volume), path, _aliases(volume))
    except PathOutside as error:
        raise SpecError("path", path, f"it is outside of the volume {volume.name}: {error}") from error
