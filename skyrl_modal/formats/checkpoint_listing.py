"""Listings of checkpoint folders: what a reader of checkpoints needs of a file system or a volume.

What is listed can be hostile: links, named pipes, deep trees and names of any kind. Links are not followed, nothing is
opened that is not a regular file, and depth and number of entries are limited.
"""

from __future__ import annotations

import contextlib
import os
import stat
from enum import StrEnum

from skyrl_modal.dataclass import dataclass

TYPE_CHECKING = False  # the same as in typing, whose import takes time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Protocol
else:
    Protocol = object

#: Entries that are examined of one folder, and folders inside of folders.
MAX_ENTRIES = 200_000
MAX_DEPTH = 6
_READ_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


class EntryKind(StrEnum):
    """What an entry is."""

    FILE = "file"
    FOLDER = "folder"
    LINK = "link"
    #: A named pipe, a socket or a device.
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry below a checkpoint folder.

    Attributes:
        path: Its path, relative to the folder that was listed, with ``/``.
        kind: What it is.
        size: Bytes of a file; 0 for anything else.
    """

    path: str
    kind: EntryKind
    size: int = 0


class Listing(Protocol):
    """A checkpoint folder."""

    def entries(self) -> Iterator[Entry]:
        """Yield the entries of the folder itself, with ``MAX_ENTRIES`` at most; none if there is no folder.

        Raises:
            OSError: The folder exists, and cannot be listed.
        """

    def entries_below(self, name: str) -> Iterator[Entry]:
        """Yield all entries below a folder in it, with paths relative to that one, with ``MAX_ENTRIES`` at most.

        Raises:
            OSError: The folder exists, and cannot be listed.
        """

    def read(self, path: str, offset: int, size: int) -> bytes | None:
        """Return a part of a regular file; None if parts of such a file are not read here.

        Raises:
            OSError: It cannot be read, or is not a regular file.
        """


def walk_entries(list_folder: Callable[[str], Iterator[Entry]]) -> Iterator[Entry]:
    """Yield all entries of a folder and of those in it, with ``MAX_ENTRIES`` and ``MAX_DEPTH`` at most.

    Args:
        list_folder: Returns the entries of one folder, whose path it receives; empty for the first one.
    """
    count, pending = 0, [("", 0)]
    while pending:
        inside, depth = pending.pop()
        for entry in list_folder(inside):
            count += 1
            if count > MAX_ENTRIES:
                return
            yield entry
            if entry.kind is EntryKind.FOLDER and depth < MAX_DEPTH:
                pending.append((entry.path, depth + 1))


class FolderListing:
    """A checkpoint folder on a file system of this machine.

    Args:
        folder: The folder. It may be a symbolic link itself.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def entries(self) -> Iterator[Entry]:
        """Yield the entries of the folder."""
        return self._list("", "")

    def entries_below(self, name: str) -> Iterator[Entry]:
        """Yield all entries below a folder in it. Links are not followed."""
        return walk_entries(lambda inside: self._list(name, inside))

    def _list(self, name: str, inside: str) -> Iterator[Entry]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # it was removed meanwhile
            yield from self._scan(name, inside)

    def _scan(self, name: str, inside: str) -> Iterator[Entry]:
        with os.scandir(os.path.join(self._folder, name, inside).rstrip("/") or "/") as listing:
            for number, item in enumerate(listing):
                if number >= MAX_ENTRIES:
                    return
                try:
                    status = item.stat(follow_symlinks=False)
                except OSError:
                    continue  # it was removed meanwhile
                path = f"{inside}/{item.name}" if inside else item.name
                kind = _kind(status.st_mode)
                yield Entry(path, kind, status.st_size if kind is EntryKind.FILE else 0)

    def read(self, path: str, offset: int, size: int) -> bytes | None:
        """Return a part of a regular file, without following a link."""
        descriptor = os.open(os.path.join(self._folder, path), _READ_FLAGS)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(f"{path} is not a regular file")
            return os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)


def _kind(mode: int) -> EntryKind:
    if stat.S_ISREG(mode):
        return EntryKind.FILE
    if stat.S_ISDIR(mode):
        return EntryKind.FOLDER
    return EntryKind.LINK if stat.S_ISLNK(mode) else EntryKind.OTHER
