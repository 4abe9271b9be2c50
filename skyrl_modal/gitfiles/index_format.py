"""Parser for git's index file, versions 2 and 3 with SHA-1, neither split nor sparse.

The format is described in gitformat-index(5). Other forms are left to git itself.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

HEADER = struct.Struct(">4sLL")
WORD = struct.Struct(">L")
#: The kind of an entry that is a submodule.
GITLINK = 0o160000
_FIXED = struct.Struct(">24xL12x20sH")
_EXTENDED, _SKIP_WORKTREE = 0x4000, 0x4000
# The part of the flags that has the length of the path; the largest value stands for any longer path.
_LENGTH = 0xFFF
# The modes of entries: files, links and submodules.
_MODES = frozenset((0o100644, 0o100755, 0o120000, GITLINK))
_EXAMINED_PLACES = 10


class IndexReadError(Exception):
    """The index cannot be read. The message states why."""


class Entry(NamedTuple):
    """One path of the index.

    Attributes:
        path: The path from the top of the worktree.
        mode: The mode, as git stores it.
        object_id: The id of the content.
        skipped: Whether a sparse checkout leaves the file out of the worktree.
    """

    path: bytes
    mode: int
    object_id: bytes
    skipped: bool


def is_plain(data: bytes) -> bool:
    """Return whether an index has a form that ``parse_index`` can parse.

    Raises:
        IndexReadError: The data is not an index.
    """
    if len(data) < HEADER.size or data[:4] != b"DIRC":
        raise IndexReadError("it is not an index")
    # `link` and `sdir` are the signatures of the extensions of split and of sparse indexes.
    return HEADER.unpack_from(data)[1] in (2, 3) and b"link" not in data and b"sdir" not in data


def find_entry_below(data: bytes, folder: bytes) -> bool:
    """Return whether one of the first places with the path of a folder is the path of an entry in that folder.

    False means that it is not known. It takes a hundredth of the time of ``parse_index``.

    Args:
        data: An index that ``parse_index`` can parse.
        folder: The path of the folder, with a slash at its end.
    """
    position = HEADER.size
    for _ in range(_EXAMINED_PLACES):
        position = data.find(folder, position + 1)
        begin = position - _FIXED.size
        if begin < HEADER.size:
            return False
        mode, _, flags = _FIXED.unpack_from(data, begin)
        end = position + (flags & _LENGTH)
        # Entries begin at a multiple of eight bytes after the header, and a path contains no NUL.
        is_entry = (begin - HEADER.size) % 8 == 0 and mode in _MODES and flags & _LENGTH < _LENGTH
        if is_entry and not flags & _EXTENDED and data.find(b"\0", position, end + 1) == end:
            return True
    return False


def parse_index(data: bytes) -> list[Entry]:
    """Return the entries of an index in their order.

    Raises:
        IndexReadError: The index is damaged.
    """
    try:
        return _parse(data)
    except (struct.error, IndexError, ValueError) as error:
        raise IndexReadError(f"it is damaged ({error})") from error


def _parse(data: bytes) -> list[Entry]:
    _, _, count = HEADER.unpack_from(data)
    entries = []
    position = HEADER.size
    read, size = _FIXED.unpack_from, _FIXED.size
    for _ in range(count):
        mode, object_id, flags = read(data, position)
        begin, skipped = position + size, False
        if flags & _EXTENDED:
            skipped = bool(data[begin] << 8 & _SKIP_WORKTREE)
            begin += 2
        length = flags & _LENGTH
        end = begin + length if length < _LENGTH else data.index(b"\0", begin + length)
        if data[end]:
            raise ValueError("a path is longer than its entry states")
        # This takes half the time of a call of the class.
        entries.append(tuple.__new__(Entry, (data[begin:end], mode, object_id, skipped)))
        # Entries are padded with one to eight NULs to a multiple of eight bytes.
        position += (end - position + 8) // 8 * 8
    return entries
