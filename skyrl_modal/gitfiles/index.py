"""Which paths git tracks: its index, versions 2 to 4, split and sparse, SHA-1 and SHA-256.

The format is Documentation/gitformat-index of git. Only names and kinds are taken from it.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Collection
from functools import cached_property
from pathlib import Path

from attrs import define

from skyrl_modal.gitfiles.object_store import Objects

_HEADER = struct.Struct(">4sLL")
_WORD = struct.Struct(">L")
_GITLINK, _FOLDER = 0o160000, 0o040000
_EXTENDED, _SKIP_WORKTREE = 0x4000, 0x4000
# So many times a name is looked for in the raw bytes before the whole index is taken apart.
_RAW_LOOKUPS = 100


class IndexUnreadable(Exception):
    """The index is not one that this reader understands; the text says why."""


@define
class Entry:
    """One path of the index.

    Attributes:
        path: From the top of the worktree; a folder of a sparse index ends in a slash.
        mode: As git writes it.
        object_id: Of the content.
        skipped: It is left out of the worktree by a sparse checkout.
    """

    path: bytes
    mode: int
    object_id: bytes
    skipped: bool


def read_entries(path: Path, hash_size: int) -> list[Entry]:
    """The entries of an index file in its order, with those of the shared index that a split one is laid over.

    Args:
        path: The file; an absent one is an empty index.
        hash_size: 20 for SHA-1, 32 for SHA-256.

    Raises:
        IndexUnreadable: The file cannot be read or understood.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise IndexUnreadable(str(error.strerror)) from error
    try:
        entries, position = _parse(data, hash_size)
        link = _extension(data, position, b"link", len(data) - hash_size)
        if link is None or not any(link[:hash_size]):
            return entries
        shared = path.parent / f"sharedindex.{link[:hash_size].hex()}"
        try:
            base, _ = _parse(shared.read_bytes(), hash_size)
        except OSError as error:
            raise IndexUnreadable(f"{shared.name}: {error.strerror}") from error
        return _merged(base, entries, link[hash_size:])
    except (struct.error, IndexError, ValueError) as error:
        raise IndexUnreadable(f"it is damaged ({error})") from error


def _parse(data: bytes, hash_size: int) -> tuple[list[Entry], int]:
    signature, version, count = _HEADER.unpack_from(data)
    if signature != b"DIRC" or version not in (2, 3, 4):
        raise IndexUnreadable(f"its version is {version}" if signature == b"DIRC" else "it is no index")
    entries = []
    position = _HEADER.size
    fixed = struct.Struct(f">24xL12x{hash_size}sH")
    name = b""
    for _ in range(count):
        mode, object_id, flags = fixed.unpack_from(data, position)
        start = position
        position += fixed.size
        skipped = False
        if flags & _EXTENDED:
            skipped = bool(data[position] << 8 & _SKIP_WORKTREE)
            position += 2
        if version == 4:
            cut, position = _offset(data, position)
            end = data.index(b"\0", position)
            name = name[: len(name) - cut] + data[position:end]
            position = end + 1
        else:
            end = data.index(b"\0", position)
            name = data[position:end]
            position = start + (end - start + 8) // 8 * 8
        entries.append(Entry(name, mode, object_id, skipped))
    return entries, position


def _offset(data: bytes, position: int) -> tuple[int, int]:
    """A number in the variable width of pack files' offsets."""
    byte = data[position]
    value = byte & 0x7F
    while byte & 0x80:
        position += 1
        byte = data[position]
        value = (value + 1) << 7 | byte & 0x7F
    return value, position + 1


def _extension(data: bytes, position: int, wanted: bytes, end: int) -> bytes | None:
    while position + 8 <= end:
        size: int = _WORD.unpack_from(data, position + 4)[0]
        if data[position : position + 4] == wanted:
            return data[position + 8 : position + 8 + size]
        position += 8 + size
    return None


def _merged(base: list[Entry], own: list[Entry], link: bytes) -> list[Entry]:
    """The shared entries without the deleted ones, with the replaced ones, and the index's own."""
    if not link:
        return sorted([*base, *own], key=lambda entry: entry.path)
    deleted, position = _bitmap(link, 0)
    replaced, _ = _bitmap(link, position)
    fresh = iter(own)
    merged = list(base)
    for number in sorted(replaced):
        entry = next(fresh)
        # A replacement carries no name of its own.
        merged[number] = Entry(base[number].path, entry.mode, entry.object_id, entry.skipped)
    kept = [entry for number, entry in enumerate(merged) if number not in deleted]
    return sorted([*kept, *fresh], key=lambda entry: entry.path)


def _bitmap(data: bytes, position: int) -> tuple[set[int], int]:
    """The positions that are set in an EWAH bitmap, and where it ends."""
    bits, words = struct.unpack_from(">LL", data, position)
    position += 8
    values = struct.unpack_from(f">{words}Q", data, position)
    position += 8 * words + 4
    found: set[int] = set()
    at = 0
    place = 0
    while place < words:
        marker = values[place]
        run, literals = marker >> 1 & 0xFFFFFFFF, marker >> 33
        if marker & 1:
            found.update(range(at, min(at + 64 * run, bits)))
        at += 64 * run
        for word in values[place + 1 : place + 1 + literals]:
            found.update(at + bit for bit in range(64) if word >> bit & 1)
            at += 64
        place += 1 + literals
    return found, position


class Index:
    """Questions about what is tracked, taken apart no further than the questions need.

    In most checkouts nothing that is tracked is ignored, and the names that are asked for do not occur in the file at
    all: a search of its raw bytes answers that without the fifty thousand objects that a large index would become.
    """

    def __init__(self, path: Path, objects: Objects, ignore_case: bool = False) -> None:
        self._path, self._objects, self._ignore_case = path, objects, ignore_case
        self._lookups_left = 0 if ignore_case else _RAW_LOOKUPS

    def load(self) -> None:
        """Reads what may fail to be read.

        Raises:
            IndexUnreadable: The file cannot be read or understood.
            ObjectMissing: It is sparse, and what it leaves out is not in the repository.
        """
        if self._raw is None:
            len(self._modes)
        len(self.absent_ignore_files)

    def tracks_file(self, path: bytes) -> bool:
        """Whether a file is tracked at this path (from the top of the worktree)."""
        return self._may_hold(path) and self._folded(path) in self._modes

    def tracks_folder(self, path: bytes) -> bool:
        """Whether something in this folder (without a slash at its end) is tracked, or it is a submodule."""
        if not self._may_hold(path):
            return False
        path = self._folded(path)
        return self._modes.get(path) == _GITLINK or self._has_below(path + b"/")

    def is_submodule(self, path: bytes) -> bool:
        """Whether this folder is tracked as a submodule."""
        return self._may_hold(path) and self._modes.get(self._folded(path)) == _GITLINK

    @property
    def submodules(self) -> list[bytes]:
        """The paths that are tracked as submodules."""
        raw = self._raw
        if raw is not None and _WORD.pack(_GITLINK) not in raw:
            return []
        return [path for path, mode in self._modes.items() if mode == _GITLINK]

    @cached_property
    def tracked(self) -> Collection[bytes]:
        """Every path that is tracked; in small letters where case is ignored."""
        return self._modes.keys()

    @cached_property
    def absent_ignore_files(self) -> dict[bytes, bytes]:
        """The ``.gitignore`` files that a sparse checkout leaves out, which git reads from the index, by path."""
        raw = self._raw
        if raw is not None and (not raw or _HEADER.unpack_from(raw)[1] == 2):
            # Version 2 has no flag for what is left out.
            return {}
        return {
            entry.path: self._objects.blob(entry.object_id)
            for entry in self._entries
            if entry.skipped and entry.path.rpartition(b"/")[2] == b".gitignore" and entry.mode & 0o170000 == 0o100000
        }

    def _folded(self, path: bytes) -> bytes:
        return path.lower() if self._ignore_case else path

    def _may_hold(self, path: bytes) -> bool:
        """False where the bytes of the path do not occur in the index, looked for only while that is cheaper."""
        if self._lookups_left <= 0 or self._raw is None:
            return True
        self._lookups_left -= 1
        return path in self._raw

    def _has_below(self, prefix: bytes) -> bool:
        paths = self._sorted
        place = bisect_left(paths, prefix)
        return place < len(paths) and paths[place].startswith(prefix)

    @cached_property
    def _raw(self) -> bytes | None:
        """The file, where every name stands in it in full; None where it has to be taken apart."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise IndexUnreadable(str(error.strerror)) from error
        if len(data) < _HEADER.size or data[:4] != b"DIRC":
            raise IndexUnreadable("it is no index")
        whole = _HEADER.unpack_from(data)[1] in (2, 3)
        return data if whole and b"link" not in data and b"sdir" not in data else None

    @cached_property
    def _entries(self) -> list[Entry]:
        entries = read_entries(self._path, self._objects.hash_size)
        if not any(entry.mode == _FOLDER for entry in entries):
            return entries
        whole: list[Entry] = []
        for entry in entries:
            if entry.mode == _FOLDER:
                whole.extend(
                    Entry(entry.path + path, mode, object_id, True)
                    for path, mode, object_id in self._objects.files_of_tree(entry.object_id)
                )
            else:
                whole.append(entry)
        return whole

    @cached_property
    def _modes(self) -> dict[bytes, int]:
        return {self._folded(entry.path): entry.mode & 0o170000 for entry in self._entries}

    @cached_property
    def _sorted(self) -> list[bytes]:
        return sorted(self._modes)
