"""Uploads to Modal's volumes.

Modal publishes the files of an upload in one request at its end (``Volume.batch_upload``, modal 1.6.4), so an upload
that is killed changes no file. Contents that Modal already has are not sent again: whole files on a volume of version
1, blocks of 8 MiB on one of version 2. Its API has no operation that creates a symbolic link or an empty folder.
"""

from __future__ import annotations

import posixpath
import stat
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import modal

from skyrl_modal.backends.contained_paths import PathOutside
from skyrl_modal.backends.file_tree import LinkRules, SkippedEntries, walk_tree
from skyrl_modal.backends.modal.client_internals import prepare_upload
from skyrl_modal.backends.modal.preflight import connect
from skyrl_modal.backends.modal.volume_errors import volume_errors
from skyrl_modal.backends.modal.volumes import walk_folder
from skyrl_modal.backends.storage import special_kind, storage_errors
from skyrl_modal.backends.transfer_options import FileState, TransferMonitor, TransferOptions
from skyrl_modal.errors import PathNotFound, StorageError
from skyrl_modal.protocol.state import VolumeEntryKind
from skyrl_modal.spec.volume import VolumeSpec

#: The size from which on the client reports the progress of a file on a volume of version 1 (modal 1.6.4).
_REPORTED_SIZE = 4 << 20


def upload(volume: VolumeSpec, local: Path, path: str, options: TransferOptions) -> Sequence[str]:
    """Copy a file or folder from this machine to a volume in one step.

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
    if options.dry_run:
        _report_files(path, files, options.monitor, _find_existing(volume, path))
        return skipped.warnings()
    sizes = _report_files(path, files, options.monitor, set())
    with storage_errors(local), volume_errors(volume, path):
        target = modal.Volume.from_name(volume.name, create_if_missing=volume.create_if_missing, version=volume.version)
        if files:
            progress = _UploadProgress(options.monitor)
            with target.batch_upload(force=True) as batch:
                prepare_upload(batch, progress.report)
                for relative, file in files.items():
                    batch.put_file(file, _target(path, relative))
            progress.end(len(sizes), sum(sizes))
        else:
            target.hydrate()
    return skipped.warnings()


def _target(path: str, relative: str) -> str:
    return posixpath.join(f"/{path}", relative) if relative else f"/{path}"


def _find_existing(volume: VolumeSpec, path: str) -> set[str]:
    """Return the paths of the files at the target."""
    try:
        return {f"/{entry.path}" for entry in walk_folder(volume, path) if entry.type is not VolumeEntryKind.FOLDER}
    except PathNotFound:
        return set()


def _report_files(path: str, files: dict[str, Path], monitor: TransferMonitor, existing: set[str]) -> list[int]:
    """Report the files to the monitor, and return their sizes."""
    sizes = []
    for relative, file in files.items():
        with storage_errors(file):
            sizes.append(file.stat().st_size)
        target = _target(path, relative)
        state = FileState.REPLACED if target in existing else FileState.NEW
        monitor.found(relative, sizes[-1], state)
    return sizes


class _UploadProgress:
    """Converts the progress that the client reports, from a thread of its own."""

    def __init__(self, monitor: TransferMonitor) -> None:
        self._monitor = monitor
        self._lock = threading.Lock()
        self._remaining: list[int] = []
        self._files = self._bytes = 0

    def report(
        self,
        task_id: int | None = None,
        *,
        name: str | None = None,
        size: float | None = None,
        advance: float | None = None,
        complete: bool | None = None,
        **others: Any,
    ) -> int | None:
        """Receive a report of ``modal.volume`` (1.6.4). Return the id of a new file."""
        with self._lock:
            if name is not None:
                self._remaining.append(int(size or 0))
                return len(self._remaining) - 1
            if task_id is None or not 0 <= task_id < len(self._remaining):
                return None
            # The progress of a small file is not reported before it is complete. A larger one that is complete without
            # any progress was on the server.
            rest = self._remaining[task_id]
            step = rest if complete else min(rest, int(advance or 0))
            self._remaining[task_id] -= step
            self._bytes += step
            self._monitor.transferred(step, is_resumed=bool(complete) and step >= _REPORTED_SIZE)
            if complete:
                self._files += 1
                self._monitor.completed()
        return None

    def end(self, files: int, size: int) -> None:
        """Report what the client has not: blocks and files that Modal had already."""
        with self._lock:
            self._monitor.transferred(max(0, size - self._bytes), is_resumed=True)
            for _ in range(files - self._files):
                self._monitor.completed()


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
