"""Access to Modal's volumes from this machine.

Modal publishes the files of an upload in one request at its end (``Volume.batch_upload``, modal 1.6.4), so an upload
that is killed changes no file. Its API has no operation that reads or creates a symbolic link, or creates an empty
folder.
"""

from __future__ import annotations

import posixpath
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import modal
import modal.exception
from modal.types import FileEntry

from skyrl_modal.backends.base import VolumeEntry
from skyrl_modal.backends.contained_paths import PathOutside
from skyrl_modal.backends.file_tree import LinkRules, SkippedEntries, walk_tree
from skyrl_modal.backends.modal.errors import backend_unavailable, error_text, is_account_refusal, is_client_error
from skyrl_modal.backends.modal.preflight import connect
from skyrl_modal.backends.transfer import STAGING_PREFIX, special_kind, staged_transfer, storage_errors
from skyrl_modal.errors import PathNotFound, SpecError, StorageError
from skyrl_modal.protocol.state import VolumeEntryKind
from skyrl_modal.spec.volume import VolumeSpec

#: Kinds of entries by the name of Modal's enum ``FileEntryType`` (modal 1.6.4).
_KINDS = {"FILE": VolumeEntryKind.FILE, "DIRECTORY": VolumeEntryKind.FOLDER}
#: Names of the other kinds in messages.
_OTHER_KINDS = {"SYMLINK": "a symbolic link", "FIFO": "a named pipe", "SOCKET": "a socket"}


def list_folder(volume: VolumeSpec, path: str) -> Sequence[VolumeEntry]:
    """List a folder of a volume, or one file. A symbolic link has the type ``"other"``.

    Raises:
        PathNotFound: There is no such volume or path.
        BackendUnavailable: Modal cannot be reached, or refuses the token.
    """
    connect()
    with translated_errors(volume, path):
        found = modal.Volume.from_name(volume.name).listdir(f"/{path}")
    entries = []
    for entry in found:
        kind = _KINDS.get(entry.type.name, VolumeEntryKind.OTHER)
        size = 0 if kind is VolumeEntryKind.FOLDER else entry.size
        entries.append(VolumeEntry(entry.path.lstrip("/"), kind, size, float(entry.mtime)))
    return entries


def download(volume: VolumeSpec, path: str, local: Path) -> Sequence[str]:
    """Copy a file or folder from a volume to this machine in one step.

    Returns:
        Messages about entries that were not copied.

    Raises:
        PathNotFound: There is no such volume or path.
        BackendUnavailable: Modal cannot be reached, or refuses the token.
        StorageError: It is neither a file nor a folder, or the target cannot be written. The target is unchanged.
    """
    connect()
    with translated_errors(volume, path):
        source = modal.Volume.from_name(volume.name)
        entries = source.listdir(f"/{path}", recursive=True)
    found = [(_relative_path(entry, path), entry) for entry in entries]
    skipped = SkippedEntries()
    with staged_transfer(local) as staged:
        if [relative for relative, _ in found] != ["."]:
            with storage_errors(local):
                staged.mkdir()
        for relative, entry in found:
            kind = _KINDS.get(entry.type.name)
            if kind is None:
                _skip_special(entry, relative, skipped)
            elif kind is VolumeEntryKind.FOLDER:
                with storage_errors(local):
                    (staged / relative).mkdir(parents=True, exist_ok=True)
            elif not posixpath.basename(relative).startswith(STAGING_PREFIX):
                _download_file(source, volume, entry, staged if relative == "." else staged / relative)
    return skipped.warnings()


def _relative_path(entry: FileEntry, path: str) -> str:
    """Return the path of an entry relative to the folder that is downloaded; ``"."`` for that path itself.

    Raises:
        StorageError: It would be outside of the target.
    """
    relative = posixpath.relpath(f"/{entry.path.lstrip('/')}", f"/{path}")
    if relative == ".." or relative.startswith("../"):
        raise StorageError(entry.path, f"Modal lists it in {path or '/'}, where it is not")
    return relative


def _skip_special(entry: FileEntry, relative: str, skipped: SkippedEntries) -> None:
    kind = _OTHER_KINDS.get(entry.type.name, "a special file")
    if relative == ".":
        raise StorageError(entry.path, f"it is {kind}, which Modal's API cannot read")
    skipped.add(relative, f"it is {kind}, which Modal's API cannot read")


def _download_file(source: modal.Volume, volume: VolumeSpec, entry: FileEntry, target: Path) -> None:
    with storage_errors(target), translated_errors(volume, entry.path):
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "xb") as file:
            try:
                source.read_file_into_fileobj(entry.path, file)
            except FileNotFoundError as error:  # it was removed after it was listed
                raise PathNotFound(f"volume {volume.name} has no {entry.path}: {error_text(error)}") from error


def upload(volume: VolumeSpec, local: Path, path: str) -> Sequence[str]:
    """Copy a file or folder from this machine to a volume in one step. A folder on the volume receives a file.

    The volume is created if it does not exist.

    Returns:
        Messages about entries that were not copied.

    Raises:
        PathNotFound: The volume does not exist, and is not to be created.
        BackendUnavailable: Modal cannot be reached, or refuses the token.
        StorageError: A file cannot be read, or is neither a file nor a folder. The volume is unchanged.
    """
    skipped = SkippedEntries()
    local = local.resolve() if local.name else local.absolute()
    files = _files_to_upload(local, skipped)
    connect()
    if list(files) == [""] and _is_folder(volume, path):
        path = posixpath.join(path, local.name)
    with storage_errors(local), translated_errors(volume, path):
        target = modal.Volume.from_name(volume.name, create_if_missing=volume.create_if_missing, version=volume.version)
        if files:
            with target.batch_upload(force=True) as batch:
                for relative, file in files.items():
                    batch.put_file(file, posixpath.join(f"/{path}", relative) if relative else f"/{path}")
        else:
            target.hydrate()
    return skipped.warnings()


def _is_folder(volume: VolumeSpec, path: str) -> bool:
    """Return whether a path on a volume is an existing folder."""
    if not path:
        return True
    try:
        entries = list_folder(volume, path)
    except PathNotFound:
        return False
    return not (len(entries) == 1 and entries[0].path == path and entries[0].type is not VolumeEntryKind.FOLDER)


def _files_to_upload(local: Path, skipped: SkippedEntries) -> dict[str, Path]:
    """Return the files to upload by their path relative to ``local``, which is ``""`` for a single file.

    A symbolic link to a file in the same folder is uploaded as a file.
    """
    with storage_errors(local):
        mode = local.stat().st_mode
    if not stat.S_ISDIR(mode):
        kind = special_kind(mode)
        if kind is not None:
            raise StorageError(str(local), f"it is {kind}: only files and folders are copied")
        return {"": local}
    rules = LinkRules(root=local, tree=local, aliases=[str(local)])
    files: dict[str, Path] = {}
    empty = {""}
    for path, status in walk_tree(local):
        empty.discard(posixpath.dirname(path))
        if not _is_unicode(path):
            skipped.add(path, "its name is not valid Unicode, which Modal requires")
        elif stat.S_ISDIR(status.st_mode):
            empty.add(path)
        elif stat.S_ISREG(status.st_mode):
            files[path] = local / path
        elif stat.S_ISLNK(status.st_mode):
            _add_link(local / path, path, rules, files, skipped)
        else:
            skipped.add(path, f"it is {special_kind(status.st_mode)}")
    for path in sorted(empty):
        skipped.add(path or ".", "it is an empty folder, which cannot be uploaded to Modal")
    return files


def _add_link(link: Path, path: str, rules: LinkRules, files: dict[str, Path], skipped: SkippedEntries) -> None:
    try:
        rules.resolve(link)
    except PathOutside as error:
        skipped.add(path, str(error))
        return
    if link.is_file():
        files[path] = link.resolve()
    else:
        skipped.add(path, "it is a symbolic link that does not lead to a file, which cannot be uploaded to Modal")


def _is_unicode(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def translated_errors(volume: VolumeSpec, path: str) -> Iterator[None]:
    """Translate errors of Modal's client about a path on a volume in a ``with`` block."""
    try:
        yield
    except modal.exception.NotFoundError as error:
        raise PathNotFound(f"volume {volume.name} has no {path or '/'}: {error_text(error)}") from error
    except modal.exception.InvalidError as error:
        if is_account_refusal(error):
            raise backend_unavailable(error) from error
        raise SpecError("path", path, f"Modal refused it: {error_text(error)}") from error
    except UnicodeEncodeError as error:
        raise SpecError("path", path, "it is not valid Unicode, which Modal requires") from error
    except Exception as error:
        if not is_client_error(error):
            raise
        raise backend_unavailable(error) from error
