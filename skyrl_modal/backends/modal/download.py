"""Downloads from Modal's volumes: several files at the same time, and large files in blocks.

A download that was interrupted continues at the block that was not complete.
"""

from __future__ import annotations

import asyncio
import os
import posixpath
import threading
import time
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import modal
from modal.types import FileEntry

from skyrl_modal.backends.file_tree import SkippedEntries
from skyrl_modal.backends.modal.client_internals import read_from
from skyrl_modal.backends.modal.errors import error_text
from skyrl_modal.backends.modal.event_loop import event_loop, wait_for_future
from skyrl_modal.backends.modal.preflight import connect
from skyrl_modal.backends.modal.volume_errors import volume_errors
from skyrl_modal.backends.modal.volumes import KINDS
from skyrl_modal.backends.staged_files import StagedFiles
from skyrl_modal.backends.staging import STAGING_PREFIX
from skyrl_modal.backends.storage import storage_errors
from skyrl_modal.backends.target_state import select_changed
from skyrl_modal.backends.transfer import staged_transfer
from skyrl_modal.backends.transfer_options import TransferMonitor, TransferOptions
from skyrl_modal.backends.tree_entries import EntryKind, TreeEntry, with_parents
from skyrl_modal.errors import PathNotFound, StorageError
from skyrl_modal.protocol.state import VolumeEntryKind
from skyrl_modal.spec.volume import VolumeSpec

#: Names of the other kinds of entries in messages, by the name of Modal's enum ``FileEntryType`` (modal 1.6.4).
_OTHER_KINDS = {"SYMLINK": "a symbolic link", "FIFO": "a named pipe", "SOCKET": "a socket"}
#: The size of the blocks that Modal stores (modal 1.6.4), in which a file is read.
BLOCK_SIZE = 8 << 20
#: Files of at most one block that are downloaded at the same time.
_SMALL_FILES = 16
#: Blocks of larger files that are in memory at the same time. The client reads as many of one file as there are CPUs.
_BLOCKS = 16
#: Modal lists times in seconds. A file that was changed so recently may change again without a later time.
_RECENT_SECONDS = 2.0
#: Seconds in which an interrupted download closes its files.
_END_TIMEOUT = 10.0


def download(volume: VolumeSpec, path: str, local: Path, options: TransferOptions) -> Sequence[str]:
    """Copy a file or folder from a volume to this machine in one step.

    Returns:
        Messages about entries that were not copied.

    Raises:
        PathNotFound: There is no such volume or path.
        BackendUnavailable: Modal cannot be reached, or refuses the token. What was copied is kept for the next call.
        StorageError: It is neither a file nor a folder, or the target cannot be written. The target is unchanged.
    """
    connect()
    with volume_errors(volume, path):
        source = modal.Volume.from_name(volume.name)
        listed = source.listdir(f"/{path}", recursive=True)
    now = time.time()
    skipped = SkippedEntries()
    paths: dict[str, str] = {}
    entries = list(_find_entries(listed, path, paths, skipped))
    with storage_errors(local):
        changed = select_changed(entries, local, options)
    if not changed or options.dry_run:
        return skipped.warnings()
    with staged_transfer(local, f"modal\0{volume.name}\0{path}") as staged, storage_errors(local):
        files = staged.prepare(changed)
        _report_complete(changed, files, options.monitor)
        _run(_Downloads(source, volume, paths, staged, options.monitor).run(files))
        staged.finish_folders()
        for entry in changed:
            if entry.kind is EntryKind.FILE and (entry.mtime_ns or 0) / 1e9 > now - _RECENT_SECONDS:
                os.utime(staged.place(entry))  # so that the next transfer does not consider it unchanged
    return skipped.warnings()


def _find_entries(
    listed: Iterable[FileEntry], path: str, paths: dict[str, str], skipped: SkippedEntries
) -> Iterable[TreeEntry]:
    """Return what is to be copied, each entry after its folder, and add the path of each file on the volume."""
    entries = []
    for entry in listed:
        relative = _relative_path(entry, path)
        kind = KINDS.get(entry.type.name)
        if "\0" in relative:
            skipped.add(relative, "its name contains a null character")
        elif kind is None:
            _skip_special(entry, relative, skipped)
        elif not any(part.startswith(STAGING_PREFIX) for part in relative.split("/")):
            paths[relative] = entry.path
            mtime = int(entry.mtime) * 10**9
            if kind is VolumeEntryKind.FOLDER:
                entries.append(TreeEntry(relative, EntryKind.FOLDER, mtime_ns=mtime))
            else:
                entries.append(TreeEntry(relative, EntryKind.FILE, entry.size, mtime))
    return with_parents(entries or [TreeEntry("", EntryKind.FOLDER)])


def _relative_path(entry: FileEntry, path: str) -> str:
    """Return the path of an entry relative to the folder that is downloaded; ``""`` for that path itself.

    Raises:
        StorageError: It would be outside of the target.
    """
    relative = posixpath.relpath(f"/{entry.path.lstrip('/')}", f"/{path}")
    if relative == ".." or relative.startswith("../"):
        raise StorageError(entry.path, f"Modal lists it in {path or '/'}, where it is not")
    return "" if relative == "." else relative


def _skip_special(entry: FileEntry, relative: str, skipped: SkippedEntries) -> None:
    kind = _OTHER_KINDS.get(entry.type.name, "a special file")
    if not relative:
        raise StorageError(entry.path, f"it is {kind}, which Modal's API cannot read")
    skipped.add(relative, f"it is {kind}, which Modal's API cannot read")


def _report_complete(changed: Sequence[TreeEntry], files: Sequence[TreeEntry], monitor: TransferMonitor) -> None:
    """Report the files that an interrupted download has copied completely."""
    missing = {entry.path for entry in files}
    for entry in changed:
        if entry.kind is EntryKind.FILE and entry.path not in missing:
            monitor.transferred(entry.size, is_resumed=True)
            monitor.completed()


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Wait for a coroutine on the event loop of this backend. If the wait is interrupted, cancel it, and wait again."""
    has_ended = threading.Event()

    async def run() -> None:
        try:
            await work
        finally:
            has_ended.set()

    future = asyncio.run_coroutine_threadsafe(run(), event_loop())
    try:
        wait_for_future(future)
    except BaseException:
        future.cancel()
        has_ended.wait(_END_TIMEOUT)
        raise


class _Downloads:
    """The files of one download."""

    def __init__(
        self,
        source: modal.Volume,
        volume: VolumeSpec,
        paths: dict[str, str],
        staged: StagedFiles,
        monitor: TransferMonitor,
    ) -> None:
        self._source = source
        self._volume = volume
        self._paths = paths
        self._staged = staged
        self._monitor = monitor

    async def run(self, files: Sequence[TreeEntry]) -> None:
        """Download files. After an error, the others end."""
        small = [entry for entry in files if entry.size <= BLOCK_SIZE]
        large = [entry for entry in files if entry.size > BLOCK_SIZE]
        try:
            async with asyncio.TaskGroup() as group:
                for entries, number in ((small, _SMALL_FILES), (large, max(1, _BLOCKS // (os.cpu_count() or 1)))):
                    waiting = iter(entries)
                    for _ in range(min(number, len(entries))):
                        group.create_task(self._download_all(waiting))
        except BaseExceptionGroup as error:
            raise error.exceptions[0] from error

    async def _download_all(self, waiting: Iterable[TreeEntry]) -> None:
        """Download files of an iterator that several tasks share."""
        for entry in waiting:
            await self._download(entry)

    async def _download(self, entry: TreeEntry) -> None:
        path = self._paths[entry.path]
        with (
            storage_errors(self._staged.place(entry)),
            volume_errors(self._volume, path),
            self._staged.writing(entry, BLOCK_SIZE) as (file, offset),
        ):
            self._monitor.transferred(offset, is_resumed=True)
            try:
                async with aclosing(read_from(self._source, f"/{path.lstrip('/')}", offset)) as parts:
                    async for part in parts:
                        await asyncio.to_thread(file.write, part)
                        self._monitor.transferred(len(part))
            except FileNotFoundError as error:  # it was removed after it was listed
                raise PathNotFound(f"volume {self._volume.name} has no {path}: {error_text(error)}") from error
        self._monitor.completed()
