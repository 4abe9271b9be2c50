"""Copies of a file or folder on file systems of this machine, and reports of what is not copied."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from skyrl_modal.backends.contained_paths import PathOutside, path_below_alias, resolve_below
from skyrl_modal.backends.transfer import STAGING_PREFIX, copy_file, special_kind, storage_errors
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


def copy_tree(tree: Path, target: Path, rules: LinkRules, skipped: SkippedEntries) -> None:
    """Copy a folder to a new folder.

    Args:
        tree: The folder, without symbolic links in its path.
        target: The new folder.
        rules: What happens to symbolic links.
        skipped: Receives the entries that are not copied.

    Raises:
        StorageError: A file or folder cannot be read or written.
    """
    copied: list[tuple[Path, os.stat_result]] = []
    with storage_errors(tree):
        copied.append((target, tree.stat()))
        target.mkdir(mode=0o700)
        for path, status in walk_tree(tree):
            kind = special_kind(status.st_mode)
            if kind is not None:
                skipped.add(path, f"it is {kind}")
            elif stat.S_ISDIR(status.st_mode):
                (target / path).mkdir(mode=0o700)
                copied.append((target / path, status))
            elif stat.S_ISLNK(status.st_mode):
                _copy_link(tree / path, target / path, path, rules, skipped)
            else:
                _copy_present_file(tree / path, target / path)
        for folder, status in reversed(copied):
            # Without these permissions the folder could not be moved to its place.
            folder.chmod(status.st_mode & 0o777 | 0o700)
            os.utime(folder, ns=(status.st_atime_ns, status.st_mtime_ns))


def _copy_present_file(source: Path, target: Path) -> None:
    """Copy a file, unless it was removed or renamed meanwhile."""
    try:
        copy_file(source, target)
    except FileNotFoundError as error:
        if os.fspath(error.filename) != os.fspath(source):
            raise


def _copy_link(link: Path, target: Path, path: str, rules: LinkRules, skipped: SkippedEntries) -> None:
    try:
        found = rules.resolve(link)
    except FileNotFoundError:
        return  # removed meanwhile
    except PathOutside as error:
        skipped.add(path, str(error))
        return
    if isinstance(found, str):
        target.symlink_to(found)
    else:
        copy_file(found, target)


def copy_item(source: Path, target: Path, rules: LinkRules, skipped: SkippedEntries) -> None:
    """Copy a file or a folder.

    Raises:
        StorageError: It is neither, or cannot be read or written.
    """
    with storage_errors(source):
        mode = source.stat().st_mode
        if stat.S_ISDIR(mode):
            copy_tree(source, target, rules, skipped)
            return
        kind = special_kind(mode)
        if kind is not None:
            raise StorageError(str(source), f"it is {kind}: only files and folders are copied")
        copy_file(source, target)
