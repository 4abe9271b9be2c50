"""Listings of checkpoint folders on volumes, for the reader in ``formats``."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from skyrl_modal.errors import PathNotFound
from skyrl_modal.formats.checkpoint_listing import (
    Entry,
    EntryKind,
    FolderListing,
    Listing,
    walk_entries,
)
from skyrl_modal.formats.checkpoints import CheckpointFolder
from skyrl_modal.protocol.resume import TrainerKind
from skyrl_modal.protocol.state import VolumeEntryKind
from skyrl_modal.spec.fields import is_below
from skyrl_modal.spec.volume import VolumeSpec

if TYPE_CHECKING:
    from skyrl_modal.backends.base import Backend
    from skyrl_modal.protocol.job import Job, Volume

KINDS = {VolumeEntryKind.FILE: EntryKind.FILE, VolumeEntryKind.FOLDER: EntryKind.FOLDER}


def read_checkpoint_folder(backend: Backend, job: Job, folder: str) -> CheckpointFolder | None:
    """Return a checkpoint folder of a run; None for one that no volume has, and that did not remain.

    Args:
        backend: The run's backend.
        job: The run.
        folder: The folder in the container.

    Raises:
        SkyRLModalError: The backend cannot answer now.
        OSError: The folder exists, and cannot be listed.
    """
    folder = posixpath.normpath(folder)
    listing = _listing(backend, job, folder)
    if listing is None:
        return None
    targets = () if job.resume is None else job.resume.targets
    target = next((target for target in targets if target.folder == folder), None)
    if target is None:
        return CheckpointFolder(listing, folder)
    is_fully_async = target.kind is TrainerKind.FULLY_ASYNC
    return CheckpointFolder(listing, folder, is_fully_async=is_fully_async, has_critic=target.has_critic)


def _listing(backend: Backend, job: Job, folder: str) -> Listing | None:
    found = [volume for volume in job.volumes if is_below(folder, volume.mount_path)]
    if not found:
        # A run on this machine has the paths of this machine outside of its volumes.
        return None if job.image else FolderListing(folder)
    volume = max(found, key=lambda volume: len(volume.mount_path))
    path = folder.removeprefix(volume.mount_path).strip("/")
    make = getattr(backend, "checkpoint_listing", None)
    listing: Listing = _WalkedListing(backend, _spec(volume), path) if make is None else make(_spec(volume), path)
    return listing


def _spec(volume: Volume) -> VolumeSpec:
    return VolumeSpec(name=volume.name, mount_path=volume.mount_path, version=volume.version)


class _WalkedListing:
    """A folder on a volume of a backend that lists one folder at a time. Contents are not read."""

    def __init__(self, backend: Backend, volume: VolumeSpec, path: str) -> None:
        self._backend, self._volume, self._path = backend, volume, path

    def entries(self) -> Iterator[Entry]:
        """Yield the entries of the folder."""
        return self._list("", "")

    def entries_below(self, name: str) -> Iterator[Entry]:
        """Yield all entries below a folder in it."""
        return walk_entries(lambda inside: self._list(name, inside))

    def _list(self, name: str, inside: str) -> Iterator[Entry]:
        try:
            found = self._backend.ls(self._volume, str(PurePosixPath(self._path, name, inside)))
        except PathNotFound:
            return
        for item in found:
            kind = KINDS.get(item.type, EntryKind.OTHER)
            path = str(PurePosixPath(inside, PurePosixPath(item.path).name))
            yield Entry(path, kind, item.size if kind is EntryKind.FILE else 0)

    def read(self, path: str, offset: int, size: int) -> bytes | None:
        """Return None."""
        return None
