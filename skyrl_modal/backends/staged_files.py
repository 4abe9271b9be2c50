"""Files in a staging folder. A transfer that continues a killed one keeps what is complete, and the begun parts.

The content of the folder is not trusted: on a shared volume a run can have replaced it. Links are not followed, and a
file that has further names is not written to.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from skyrl_modal.backends.storage import is_folder
from skyrl_modal.backends.temporary_folders import remove_tree
from skyrl_modal.backends.tree_entries import EntryKind, TreeEntry

_OPEN_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class StagedFiles:
    """The files of one transfer.

    A complete file has the size and the time of the last change of its source. A file that is being written is in a
    folder of its own, under a name that includes both: its content is a beginning of that version of the source.

    Args:
        folder: The staging folder, which this process has locked.
    """

    def __init__(self, folder: Path) -> None:
        self.item = folder / "item"
        self._parts = folder / "parts"
        self._entries: dict[str, TreeEntry] = {}

    def place(self, entry: TreeEntry) -> Path:
        """Return the path of the complete copy of an entry."""
        return self.item / entry.path if entry.path else self.item

    def prepare(self, entries: Sequence[TreeEntry]) -> Sequence[TreeEntry]:
        """Create the folders and links, and remove what no entry needs.

        Args:
            entries: All entries, each after its folder.

        Returns:
            The files that are not complete.

        Raises:
            OSError: The staging folder cannot be written.
        """
        self._entries = {entry.path: entry for entry in entries}
        self._remove_unneeded()
        for entry in entries:
            place = self.place(entry)
            if entry.kind is EntryKind.FOLDER:
                place.mkdir(mode=0o777 if entry.mode is None else 0o700, exist_ok=True)
            elif entry.kind is EntryKind.LINK:
                place.symlink_to(entry.link)
        return [
            entry
            for entry in entries
            if entry.kind is EntryKind.FILE and not self._is_complete(self.place(entry), entry)
        ]

    def _remove_unneeded(self) -> None:
        root = self._entries[""]
        if os.path.lexists(self.item) and (
            not self._is_complete(self.item, root) if root.kind is EntryKind.FILE else not is_folder(self.item)
        ):
            _remove(self.item)
        for parent, folders, files in os.walk(self.item):
            for name in [*folders, *files]:
                path = Path(parent, name)
                entry = self._entries.get(path.relative_to(self.item).as_posix())
                if entry is None or not self._is_needed(path, entry):
                    _remove(path)
            folders[:] = [name for name in folders if is_folder(Path(parent, name))]
        if os.path.lexists(self._parts) and not is_folder(self._parts):
            _remove(self._parts)
        self._parts.mkdir(mode=0o700, exist_ok=True)
        needed = {self._part(entry).name for entry in self._entries.values() if entry.kind is EntryKind.FILE}
        for path in self._parts.iterdir():
            if path.name not in needed or not _is_plain_file(path):
                _remove(path)

    def _is_needed(self, path: Path, entry: TreeEntry) -> bool:
        """Return whether a path in the staging folder can stay. Links are created again."""
        if entry.kind is EntryKind.FOLDER:
            return is_folder(path)
        return entry.kind is EntryKind.FILE and self._is_complete(path, entry)

    @staticmethod
    def _is_complete(path: Path, entry: TreeEntry) -> bool:
        try:
            status = path.lstat()
        except FileNotFoundError:
            return False
        return (
            stat.S_ISREG(status.st_mode)
            and status.st_nlink == 1
            and entry.mtime_ns is not None
            and (status.st_size, status.st_mtime_ns) == (entry.size, entry.mtime_ns)
        )

    def _part(self, entry: TreeEntry) -> Path:
        name = hashlib.sha256(entry.path.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        return self._parts / f"{name}-{entry.size}-{entry.mtime_ns}"

    @contextlib.contextmanager
    def writing(self, entry: TreeEntry, block_size: int) -> Iterator[tuple[IO[bytes], int]]:
        """Write a file. At the end of the ``with`` block it is complete; after an error, its beginning is kept.

        Args:
            entry: The file.
            block_size: The kept beginning is a multiple of this.

        Yields:
            The file, at the end of the beginning that is kept, and the size of that beginning.

        Raises:
            OSError: It cannot be written.
        """
        part = self._part(entry)
        if os.path.lexists(part) and not _is_plain_file(part):
            _remove(part)
        mode = 0o666 if entry.mode is None else 0o600
        with open(part, "r+b", buffering=0, opener=lambda name, _: os.open(name, _OPEN_FLAGS, mode)) as file:
            size = min(os.fstat(file.fileno()).st_size, entry.size)
            offset = size if size == entry.size else size - size % block_size
            if entry.mtime_ns is None:
                offset = 0  # the version of the source is not known
            file.truncate(offset)
            file.seek(offset)
            yield file, offset
            if entry.mode is not None:
                os.fchmod(file.fileno(), entry.mode)
            if entry.mtime_ns is not None:
                os.utime(file.fileno(), ns=(entry.mtime_ns, entry.mtime_ns))
        os.rename(part, self.place(entry))

    def finish_folders(self) -> None:
        """Set the permissions and times of the folders.

        Without the permissions of its owner a folder could not be moved to its place.
        """
        for entry in reversed(self._entries.values()):
            if entry.kind is EntryKind.FOLDER:
                place = self.place(entry)
                if entry.mode is not None:
                    place.chmod(entry.mode | 0o700)
                if entry.mtime_ns is not None:
                    os.utime(place, ns=(entry.mtime_ns, entry.mtime_ns))


def _is_plain_file(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1


def _remove(path: Path) -> None:
    if is_folder(path):
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)
