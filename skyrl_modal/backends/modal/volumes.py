"""Files on Modal's volumes: lists, reads and removes them. ``download`` and ``upload`` transfer them."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence

import modal
from modal.types import FileEntry

from skyrl_modal.backends.base import VolumeEntry
from skyrl_modal.backends.modal.errors import error_text
from skyrl_modal.backends.modal.preflight import connect
from skyrl_modal.backends.modal.volume_errors import volume_errors
from skyrl_modal.errors import PathNotFound, SpecError, StorageError
from skyrl_modal.protocol.state import VolumeEntryKind
from skyrl_modal.spec.volume import VolumeSpec

#: Kinds of entries by the name of Modal's enum ``FileEntryType`` (modal 1.6.4).
KINDS = {"FILE": VolumeEntryKind.FILE, "DIRECTORY": VolumeEntryKind.FOLDER}


def list_folder(volume: VolumeSpec, path: str) -> Sequence[VolumeEntry]:
    """List a folder of a volume, or one file. A symbolic link has the type ``"other"``.

    Raises:
        PathNotFound: There is no such volume or path.
        BackendUnavailable: Modal cannot be reached, or refuses the token.
    """
    connect()
    with volume_errors(volume, path):
        return [_to_entry(entry) for entry in modal.Volume.from_name(volume.name).listdir(f"/{path}")]


def walk_folder(volume: VolumeSpec, path: str) -> Iterator[VolumeEntry]:
    """Yield all entries below a folder of a volume, or one file.

    Raises:
        PathNotFound: There is no such volume or path.
        BackendUnavailable: Modal cannot be reached, or refuses the token.
    """
    connect()
    with volume_errors(volume, path):
        for entry in modal.Volume.from_name(volume.name).iterdir(f"/{path}", recursive=True):
            yield _to_entry(entry)


def _to_entry(entry: FileEntry) -> VolumeEntry:
    kind = KINDS.get(entry.type.name, VolumeEntryKind.OTHER)
    size = 0 if kind is VolumeEntryKind.FOLDER else entry.size
    return VolumeEntry(entry.path.lstrip("/"), kind, size, float(entry.mtime))


def find_kind(volume: VolumeSpec, path: str) -> VolumeEntryKind:
    """Return what a path on a volume is.

    Raises:
        PathNotFound: There is no such volume or path.
        BackendUnavailable: Modal cannot be reached, or refuses the token.
    """
    entries: Sequence[VolumeEntry]
    if path.endswith("*"):  # the client refuses to list such a path (modal 1.6.4)
        entries = [entry for entry in list_folder(volume, posixpath.dirname(path)) if entry.path == path]
        if not entries:
            raise PathNotFound(f"volume {volume.name} has no {path}")
    else:
        entries = list_folder(volume, path)
    if len(entries) == 1 and entries[0].path == path:
        return entries[0].type
    return VolumeEntryKind.FOLDER


def read_file(volume: VolumeSpec, path: str) -> Iterator[bytes]:
    """Yield the content of a file of a volume in pieces.

    Raises:
        PathNotFound: There is no such volume or path.
        SpecError: It is a folder.
        StorageError: It is not a regular file.
        BackendUnavailable: Modal cannot be reached, or refuses the token.
    """
    kind = find_kind(volume, path)
    if kind is VolumeEntryKind.FOLDER:
        raise SpecError("path", path, "it is a folder. Pass the path of a file")
    if kind is not VolumeEntryKind.FILE:
        raise StorageError(path, "it is not a regular file, which Modal's API cannot read")
    with volume_errors(volume, path):
        try:
            yield from modal.Volume.from_name(volume.name).read_file(f"/{path}")
        except FileNotFoundError as error:  # it was removed after it was listed
            raise PathNotFound(f"volume {volume.name} has no {path}: {error_text(error)}") from error


def remove(volume: VolumeSpec, path: str, *, recursive: bool) -> None:
    """Remove a file of a volume, or a folder with its content. For the root, remove all that is in it.

    Raises:
        PathNotFound: There is no such volume or path.
        SpecError: It is a folder, and ``recursive`` is False.
        BackendUnavailable: Modal cannot be reached, or refuses the token.
    """
    is_folder = find_kind(volume, path) is VolumeEntryKind.FOLDER
    if is_folder and not recursive:
        raise SpecError("path", path, "it is a folder. Pass recursive=True (rm -r) to remove it with its content")
    paths = [path] if path else [entry.path for entry in list_folder(volume, "")]
    with volume_errors(volume, path):
        reference = modal.Volume.from_name(volume.name)
        for each in paths:
            try:
                reference.remove_file(f"/{each}", recursive=is_folder)
            except FileNotFoundError as error:
                raise PathNotFound(f"volume {volume.name} has no {each}: {error_text(error)}") from error
