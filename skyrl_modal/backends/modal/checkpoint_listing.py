"""Listings of checkpoint folders on Modal's volumes. One request lists a checkpoint; only small files are read."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

import modal

from skyrl_modal.backends.modal.preflight import connect
from skyrl_modal.backends.modal.volume_errors import volume_errors
from skyrl_modal.errors import PathNotFound
from skyrl_modal.formats.checkpoint_listing import MAX_ENTRIES, Entry, EntryKind
from skyrl_modal.spec.volume import VolumeSpec

#: Kinds of entries by the name of Modal's enum ``FileEntryType`` (modal 1.6.4).
_KINDS = {"FILE": EntryKind.FILE, "DIRECTORY": EntryKind.FOLDER, "SYMLINK": EntryKind.LINK}
#: Files that are read: the pointer and the configurations of models. Others are as large as models.
_READ_ENDINGS = (".txt", ".json")


class ModalCheckpointListing:
    """A checkpoint folder on a volume.

    Args:
        volume: The volume.
        path: The folder on it.
    """

    def __init__(self, volume: VolumeSpec, path: str) -> None:
        self._volume = volume
        self._path = f"/{path.strip('/')}"

    def entries(self) -> Iterator[Entry]:
        """Yield the entries of the folder; none if there is no volume or folder.

        Raises:
            BackendUnavailable: Modal cannot be reached, or refuses the token.
        """
        return self._list(self._path, recursive=False)

    def entries_below(self, name: str) -> Iterator[Entry]:
        """Yield all entries below a folder in it, which one request returns. The errors are those of ``entries``."""
        return self._list(posixpath.join(self._path, name), recursive=True)

    def _list(self, path: str, *, recursive: bool) -> Iterator[Entry]:
        connect()
        try:
            with volume_errors(self._volume, path):
                listing = modal.Volume.from_name(self._volume.name).iterdir(path, recursive=recursive)
                for number, entry in enumerate(listing):
                    if number >= MAX_ENTRIES:
                        return
                    inside = posixpath.relpath(f"/{entry.path.lstrip('/')}", path)
                    if inside == "." or inside.startswith("../"):
                        continue  # the path itself is a file, or the entry is elsewhere
                    kind = _KINDS.get(entry.type.name, EntryKind.OTHER)
                    yield Entry(inside, kind, entry.size if kind is EntryKind.FILE else 0)
        except PathNotFound:
            return

    def read(self, path: str, offset: int, size: int) -> bytes | None:
        """Return a part of a small file; None for others.

        Raises:
            BackendUnavailable: Modal cannot be reached, or refuses the token.
            PathNotFound: It was removed meanwhile. It is also an OSError.
        """
        if not path.endswith(_READ_ENDINGS):
            return None
        content = bytearray()
        with volume_errors(self._volume, path):
            for part in modal.Volume.from_name(self._volume.name).read_file(posixpath.join(self._path, path)):
                content += part
                if len(content) >= offset + size:
                    break
        return bytes(content[offset : offset + size])
