"""Volumes of the local backend: folders of this user that are kept between runs."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

import platformdirs

from skyrl_modal.backends.base import VolumeEntry
from skyrl_modal.errors import SpecError
from skyrl_modal.protocol.state import VolumeEntryKind


def volume_folder(name: str) -> Path:
    """Return the folder of a volume."""
    return platformdirs.user_data_path("skyrl_modal") / "volumes" / name


def list_folder(volume: str, path: str) -> Sequence[VolumeEntry]:
    """Return the entries of a folder of a volume. For a file, return one entry.

    Raises:
        FileNotFoundError: There is no such volume or path.
        SpecError: The path is outside of the volume.
    """
    place = _existing_path(volume, path)
    root = volume_folder(volume).resolve()
    entries = []
    for item in sorted(place.iterdir()) if place.is_dir() else [place]:
        status = item.lstat()
        kind = _kind(item, status.st_mode)
        size = 0 if kind is VolumeEntryKind.FOLDER else status.st_size
        entries.append(VolumeEntry(item.relative_to(root).as_posix(), kind, size, status.st_mtime))
    return entries


def _kind(path: Path, mode: int) -> VolumeEntryKind:
    """Return the kind of an entry. A symbolic link counts as a file if it leads to one."""
    if stat.S_ISDIR(mode):
        return VolumeEntryKind.FOLDER
    return VolumeEntryKind.FILE if path.is_file() else VolumeEntryKind.OTHER


def copy_from_volume(volume: str, path: str, local: Path) -> None:
    """Copy a file or folder from a volume to this machine.

    Raises:
        FileNotFoundError: There is no such volume or path.
        SpecError: The path is outside of the volume.
    """
    _copy(_existing_path(volume, path), local)


def copy_to_volume(volume: str, local: Path, path: str) -> None:
    """Copy a file or folder from this machine to a volume, which is created if it does not exist.

    Raises:
        SpecError: The path is outside of the volume.
    """
    _copy(local, _path_on_volume(volume, path))


def _existing_path(volume: str, path: str) -> Path:
    place = _path_on_volume(volume, path)
    if not place.exists():
        raise FileNotFoundError(f"volume {volume} has no {path or '/'}")
    return place


def _path_on_volume(volume: str, path: str) -> Path:
    folder = volume_folder(volume)
    place = (folder / path.lstrip("/")).resolve()
    if not place.is_relative_to(folder.resolve()):
        raise SpecError("path", path, f"it is outside of the volume {volume}")
    return place


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)
