"""Access to Modal's volumes from this machine."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import modal
import modal.exception

from skyrl_modal.backends.base import VolumeEntry
from skyrl_modal.backends.modal.errors import backend_unavailable, error_text
from skyrl_modal.errors import SpecError
from skyrl_modal.protocol.state import VolumeEntryKind

#: Kinds of entries by the name of Modal's enum ``FileEntryType`` (modal 1.6.4).
_KINDS = {"FILE": VolumeEntryKind.FILE, "DIRECTORY": VolumeEntryKind.FOLDER}


def list_folder(volume: str, path: str) -> Sequence[VolumeEntry]:
    """List a folder of a volume, or one file.

    Raises:
        FileNotFoundError: There is no such volume or path.
        BackendUnavailable: Modal cannot be reached, or refuses the token.
    """
    with _translated_errors(volume, path):
        found = modal.Volume.from_name(volume).listdir(f"/{path}")
    entries = []
    for entry in found:
        kind = _KINDS.get(entry.type.name, VolumeEntryKind.OTHER)
        size = 0 if kind is VolumeEntryKind.FOLDER else entry.size
        entries.append(VolumeEntry(entry.path.lstrip("/"), kind, size, float(entry.mtime)))
    return entries


def download(volume: str, path: str, local: Path) -> None:
    """Copy a file or folder from a volume to ``local``.

    Raises:
        FileNotFoundError: There is no such volume or path.
        BackendUnavailable: Modal cannot be reached, or refuses the token.
    """
    source = modal.Volume.from_name(volume)
    with _translated_errors(volume, path):
        for entry in source.listdir(f"/{path}", recursive=True):
            relative = posixpath.relpath(entry.path.lstrip("/"), path or ".")
            target = local if relative == "." else local / relative
            kind = _KINDS.get(entry.type.name)
            if kind is VolumeEntryKind.FOLDER:
                target.mkdir(parents=True, exist_ok=True)
            elif kind is VolumeEntryKind.FILE:
                target.parent.mkdir(parents=True, exist_ok=True)
                with open(target, "wb") as file:
                    source.read_file_into_fileobj(entry.path, file)


def upload(volume: str, local: Path, path: str) -> None:
    """Copy a file or folder from this machine to a volume, which is created if it does not exist.

    Raises:
        BackendUnavailable: Modal cannot be reached, or refuses the token.
    """
    with (
        _translated_errors(volume, path),
        modal.Volume.from_name(volume, create_if_missing=True).batch_upload(force=True) as batch,
    ):
        if local.is_dir():
            batch.put_directory(local, f"/{path}")
        else:
            batch.put_file(local, f"/{path}")


@contextmanager
def _translated_errors(volume: str, path: str) -> Iterator[None]:
    try:
        yield
    except modal.exception.NotFoundError as error:
        raise FileNotFoundError(f"volume {volume} has no {path or '/'}: {error_text(error)}") from error
    except modal.exception.InvalidError as error:
        raise SpecError("path", path, f"Modal refused it: {error_text(error)}") from error
    except modal.exception.Error as error:
        raise backend_unavailable(error) from error
