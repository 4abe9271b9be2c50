"""Comparison of what is transferred with what is at the target on this machine."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from skyrl_modal.backends.storage import check_no_special_file, file_conflict, folder_conflict
from skyrl_modal.backends.transfer_options import FileState, TransferOptions
from skyrl_modal.backends.tree_entries import EntryKind, TreeEntry


def select_changed(entries: Iterable[TreeEntry], target: Path, options: TransferOptions) -> Sequence[TreeEntry]:
    """Return the entries that have to be copied, with the folders that they are in. Report all files to the monitor.

    Args:
        entries: The entries, each after its folder.
        target: The path of the copy.
        options: Whether unchanged files are copied too, and the monitor.

    Raises:
        StorageError: There is a folder where a file has to be, or the reverse; or a special file, which is not
            replaced; or a link where a folder has to be.
    """
    everything = list(entries)
    is_new = not os.path.lexists(target)
    missing: set[str] = set()
    needed: set[str] = set()
    for entry in everything:
        place = target / entry.path if entry.path else target
        is_below_missing = is_new if not entry.path else posixpath.dirname(entry.path) in missing
        state = FileState.NEW if is_below_missing else _state(entry, place, force=options.force)
        if entry.kind is EntryKind.FOLDER:
            if state is FileState.NEW:
                missing.add(entry.path)
                needed.add(entry.path)
            continue
        options.monitor.found(entry.path, entry.size, state)
        if state is not FileState.UNCHANGED:
            needed.add(entry.path)
    for path in list(needed):
        parent = path
        while parent:
            parent = posixpath.dirname(parent)
            needed.add(parent)
    return [entry for entry in everything if entry.path in needed]


def _state(entry: TreeEntry, place: Path, *, force: bool) -> FileState:
    try:
        status = place.lstat()
    except FileNotFoundError:
        return FileState.NEW
    is_folder = stat.S_ISDIR(status.st_mode)
    if entry.kind is EntryKind.FOLDER:
        if not is_folder:
            raise folder_conflict(place)
        return FileState.UNCHANGED
    if is_folder:
        raise file_conflict(place)
    check_no_special_file(place)
    if force:
        return FileState.REPLACED
    if entry.kind is EntryKind.LINK:
        is_same = stat.S_ISLNK(status.st_mode) and os.readlink(place) == entry.link
    else:
        is_same = (
            stat.S_ISREG(status.st_mode)
            and entry.mtime_ns is not None
            and (status.st_size, status.st_mtime_ns) == (entry.size, entry.mtime_ns)
            and (entry.mode is None or status.st_mode & 0o7777 == entry.mode)
        )
    return FileState.UNCHANGED if is_same else FileState.REPLACED
