"""Entries of a file or folder that is transferred, as plain data."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path

from skyrl_modal.dataclass import dataclass


class EntryKind(StrEnum):
    """What an entry is."""

    FILE = "file"
    FOLDER = "folder"
    LINK = "link"


@dataclass(frozen=True, slots=True)
class TreeEntry:
    """One file, folder or symbolic link of what is transferred.

    Attributes:
        path: Its path relative to what is transferred; ``""`` for that file or folder itself.
        kind: What it is.
        size: Bytes of a file.
        mtime_ns: Time of the last change in nanoseconds since the epoch; None if it is not known.
        mode: Permissions of the copy; None for those of a new file.
        source: Where the content is read from.
        link: The text of a symbolic link.
    """

    path: str
    kind: EntryKind
    size: int = 0
    mtime_ns: int | None = None
    mode: int | None = None
    source: Path | None = None
    link: str = ""


def with_parents(entries: Iterable[TreeEntry]) -> Iterator[TreeEntry]:
    """Yield entries, each after the folders that it is in. A folder that is not listed has no times and permissions.

    Example:
        >>> [entry.path for entry in with_parents([TreeEntry("a/b/c", EntryKind.FILE)])]
        ['', 'a', 'a/b', 'a/b/c']
    """
    listed = {entry.path: entry for entry in entries}
    done: set[str] = set()

    def parents_of(path: str) -> Iterator[TreeEntry]:
        if not path:
            return
        parent = posixpath.dirname(path)
        if parent not in done:
            yield from parents_of(parent)
            done.add(parent)
            yield listed.get(parent) or TreeEntry(parent, EntryKind.FOLDER)

    for entry in listed.values():
        yield from parents_of(entry.path)
        if entry.path not in done:
            done.add(entry.path)
            yield entry
