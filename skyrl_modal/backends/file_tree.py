"""What a transfer copies of a file or folder of this machine, and reports of what is not copied."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from skyrl_modal.backends.contained_paths import PathOutside, path_below_alias, resolve_below
from skyrl_modal.backends.staging import STAGING_PREFIX
from skyrl_modal.backends.storage import special_kind, storage_errors
from skyrl_modal.backends.tree_entries import EntryKind, TreeEntry
from skyrl_modal.dataclass import dataclass
from skyrl_modal.errors import StorageError

#: Entries that a report names; further ones are counted.
_REPORTED_ENTRIES = 10


class SkippedEntries:
    """Entries that a transfer did not copy."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, path: str, reason: str) -> None:
        """Add an entry. The path is relative to the folder that is copied."""
        self._lines.append(f"{path!r} was not copied: {reason}")

    def warnings(self) -> Sequence[str]:
        """Return a message for each entry, up to a number; the last one counts the rest."""
        rest = len(self._lines) - _REPORTED_ENTRIES
        return self._lines[:_REPORTED_ENTRIES] + ([f"{rest} more entries were not copied"] if rest > 0 else [])


@dataclass(frozen=True, slots=True)
class LinkRules:
    """What happens to the symbolic links in a folder that is copied.

    A link that leads to a path in the copied folder is kept. An absolute one becomes relative, so that it also works in
    the copy.

    Attributes:
        root: The volume's folder, or the copied folder itself. A link out of it is not followed.
        tree: The folder that is copied.
        aliases: Absolute paths that ``root`` has in the container.
        kept_below: Links to absolute paths below these are kept unchanged: the copy is used where these paths exist.
        with_contents: Whether a link to a file that is below ``root`` and not in ``tree`` is replaced by the content of
            the file.
    """

    root: Path
    tree: Path
    aliases: Sequence[str] = ()
    kept_below: Sequence[str] = ()
    with_contents: bool = False

    def resolve(self, link: Path) -> str | Path:
        """Return the text of the new link, or the file whose content replaces it.

        Raises:
            PathOutside: The link cannot be copied. The message is the reason.
        """
        text = os.readlink(link)
        absolute = text.startswith("/")
        if absolute and path_below_alias(text, self.kept_below) is not None:
            return text
        place = self._next_place(link, text)
        resolved = resolve_below(self.root, link.relative_to(self.root).as_posix(), self.aliases)
        if place.is_relative_to(self.tree) and resolved.is_relative_to(self.tree):
            return os.path.relpath(place, link.parent) if absolute else text
        if self.with_contents and resolved.is_file():
            return resolved
        raise PathOutside(f"it is a symbolic link to {text!r}, outside of the copied folder")

    def _next_place(self, link: Path, text: str) -> Path:
        """Return the path that the text of a link names, without following further links."""
        if text.startswith("/"):
            inside = path_below_alias(text, self.aliases)
            if inside is None:
                raise PathOutside(f"it is a symbolic link to {text!r}, outside of the copied folder")
            return self.root / inside
        return Path(posixpath.normpath(link.parent / text))


def walk_tree(tree: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the path, relative to the folder, and the status of each entry below it; each folder before its content.

    Links are not followed. The staging folders of other transfers are omitted.

    Raises:
        StorageError: A folder cannot be read.
    """
    folders = [""]
    while folders:
        folder = folders.pop()
        with storage_errors(tree / folder), os.scandir(tree / folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith(STAGING_PREFIX):
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # removed meanwhile
                path = f"{folder}/{entry.name}" if folder else entry.name
                yield path, status
                if stat.S_ISDIR(status.st_mode):
                    folders.append(path)


def list_entries(source: Path, rules: LinkRules, skipped: SkippedEntries) -> list[TreeEntry]:
    """Return what has to be copied of a file or folder, each entry after its folder.

    Args:
        source: The file or folder, without symbolic links in its path.
        rules: What happens to symbolic links.
        skipped: Receives the entries that are not copied.

    Raises:
        StorageError: It is neither a file nor a folder, or cannot be read.
    """
    with storage_errors(source):
        status = source.stat()
        kind = special_kind(status.st_mode)
        if kind is not None:
            raise StorageError(str(source), f"it is {kind}: only files and folders are copied")
        if not stat.S_ISDIR(status.st_mode):
            return [_file_entry("", source, status)]
        entries = [_folder_entry("", status)]
        for path, status in walk_tree(source):
            kind = special_kind(status.st_mode)
            if kind is not None:
                skipped.add(path, f"it is {kind}")
            elif stat.S_ISDIR(status.st_mode):
                entries.append(_folder_entry(path, status))
            elif stat.S_ISLNK(status.st_mode):
                entries += _link_entries(source / path, path, rules, skipped)
            else:
                entries.append(_file_entry(path, source / path, status))
        return entries


def _folder_entry(path: str, status: os.stat_result) -> TreeEntry:
    return TreeEntry(path, EntryKind.FOLDER, mtime_ns=status.st_mtime_ns, mode=status.st_mode & 0o777)


def _file_entry(path: str, source: Path, status: os.stat_result) -> TreeEntry:
    return TreeEntry(path, EntryKind.FILE, status.st_size, status.st_mtime_ns, status.st_mode & 0o777, source)


def _link_entries(link: Path, path: str, rules: LinkRules, skipped: SkippedEntries) -> list[TreeEntry]:
    """Return the entry for a link; nothing if it is not copied, or was removed meanwhile."""
    try:
        found = rules.resolve(link)
        if isinstance(found, str):
            return [TreeEntry(path, EntryKind.LINK, link=found)]
        return [_file_entry(path, found, found.stat())]
    except FileNotFoundError:
        return []
    except PathOutside as error:
        skipped.add(path, str(error))
        return []
