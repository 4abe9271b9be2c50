"""Copies of files and folders from one place on this machine to another, by several threads."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from skyrl_modal.backends.file_tree import LinkRules, SkippedEntries, list_entries
from skyrl_modal.backends.staged_files import StagedFiles
from skyrl_modal.backends.storage import storage_errors
from skyrl_modal.backends.target_state import select_changed
from skyrl_modal.backends.transfer import staged_transfer
from skyrl_modal.backends.transfer_options import TransferMonitor, TransferOptions
from skyrl_modal.backends.tree_entries import EntryKind, TreeEntry
from skyrl_modal.dataclass import replace

#: Files that are copied at the same time.
_THREADS = 4
#: Bytes that are copied in one step. A transfer that continues a killed one begins at a multiple of it.
_BLOCK_SIZE = 1 << 20


def copy_item(source: Path, target: Path, rules: LinkRules, options: TransferOptions) -> Sequence[str]:
    """Copy a file or folder in one step. Files that the target has with the same size and times are not copied.

    Args:
        source: The file or folder, without symbolic links in its path.
        target: The path of the copy.
        rules: What happens to symbolic links.
        options: What the caller requests.

    Returns:
        Messages about entries that were not copied.

    Raises:
        StorageError: A file cannot be read or written, or is neither a file nor a folder. The target is unchanged.
    """
    skipped = SkippedEntries()
    entries = list_entries(source, rules, skipped)
    with storage_errors(target):
        changed = select_changed(entries, target, options)
    if not changed or options.dry_run:
        return skipped.warnings()
    with staged_transfer(target, f"local\0{source}") as staged, storage_errors(target):
        files = staged.prepare(changed)
        _report_complete(changed, files, options.monitor)
        _copy_files(files, staged, options.monitor)
        staged.finish_folders()
    return skipped.warnings()


def _report_complete(changed: Sequence[TreeEntry], files: Sequence[TreeEntry], monitor: TransferMonitor) -> None:
    """Report the files that a killed transfer has copied completely."""
    missing = {entry.path for entry in files}
    for entry in changed:
        if entry.kind is EntryKind.FILE and entry.path not in missing:
            monitor.transferred(entry.size, is_resumed=True)
            monitor.completed()


def _copy_files(files: Sequence[TreeEntry], staged: StagedFiles, monitor: TransferMonitor) -> None:
    """Copy files. After an error or Ctrl-C the threads end before their next block."""
    stop = threading.Event()
    pool = ThreadPoolExecutor(min(_THREADS, len(files)) or 1, thread_name_prefix="skyrl-modal-copy")
    try:
        for future in as_completed([pool.submit(copy_file, entry, staged, monitor, stop) for entry in files]):
            future.result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def copy_file(entry: TreeEntry, staged: StagedFiles, monitor: TransferMonitor, stop: threading.Event) -> None:
    """Copy a regular file, with its permissions and times. A file that was removed meanwhile is left out.

    The copy has at most the size that the file had at the beginning: a log that is written meanwhile has no end.

    Raises:
        OSError: It is not a regular file any more, or another error of the system.
    """
    if entry.source is None:
        raise ValueError(f"{entry.path!r} has no source")
    try:
        # A link or a named pipe may have replaced the file; it must neither be followed nor block.
        descriptor = os.open(entry.source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    with open(descriptor, "rb", buffering=0) as reader:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(entry.source))
        present = replace(entry, size=status.st_size, mtime_ns=status.st_mtime_ns, mode=status.st_mode & 0o777)
        with staged.writing(present, _BLOCK_SIZE) as (writer, offset):
            monitor.transferred(offset, is_resumed=True)
            reader.seek(offset)
            remaining = present.size - offset
            while remaining and (chunk := reader.read(min(_BLOCK_SIZE, remaining))):
                if stop.is_set():
                    raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR), str(entry.source))
                view = memoryview(chunk)
                while view:
                    view = view[writer.write(view) :]
                remaining -= len(chunk)
                monitor.transferred(len(chunk))
    monitor.completed()
