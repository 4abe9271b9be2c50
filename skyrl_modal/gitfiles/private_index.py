"""A copy of git's index in the user's cache, which git refreshes instead of the index in the checkout.

git recognises an unchanged file by the status that its index has for it. After `cp -a`, `rsync` or the restoration of a
backup no status is right, and git compares the content of every file. `git status` then stores the new status in the
index. The checkout is not written here, so each call would compare all files. Therefore git gets a copy of the index
and may write it, and the copy is stored for the next call.

A stored copy is used only for the same index (by its content and its status) with the same settings and attributes. The
copy gets the time of its original, because git compares a file again that was changed at that time or later
(Documentation/technical/racy-git.txt).
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from skyrl_modal.gitfiles.files import MAX_SMALL_FILE_BYTES, read_regular_file
from skyrl_modal.gitfiles.index_format import HEADER
from skyrl_modal.gitfiles.result_cache import ResultCache, latest_settled_time

#: Size of an index that is copied. Larger ones, of about 300,000 files, are read where they are.
MAX_COPIED_BYTES = 32 << 20
#: Settings with which git writes the copy in a form that needs no other file, and that each git can read.
COPY_SETTINGS = ("core.splitIndex=false", "core.untrackedCache=false", "index.sparse=false")
# Signatures of the extensions of split and of sparse indexes, each with the first byte of its size.
_SPLIT, _SPARSE = b"link\0", b"sdir\0"
_STORED = struct.Struct("<32sq")
_VERSIONS = (2, 3)
# Of an entry: the time of the last status change, and the flags. Described in gitformat-index(5).
_ENTRY = struct.Struct(">LL52xH")
_EXTENDED, _NAME_LENGTH = 0x4000, 0xFFF


class PrivateIndex:
    """A file with a copy of the index of a worktree. ``close`` removes it.

    Args:
        cache: Where the copy is stored.
        name: The name of the stored copy.
        key: A digest of what the stored copy depends on.
        content: The content of the file.
        changed_ns: The time of modification that the file gets.

    Raises:
        OSError: The file cannot be written.

    Attributes:
        path: The file.
    """

    def __init__(self, cache: ResultCache, name: str, key: bytes, content: bytes, changed_ns: int) -> None:
        self._cache, self._name, self._key = cache, name, key
        handle, self.path = cache.create_file()
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.utime(self.path, ns=(changed_ns, changed_ns))
            self._written = os.stat(self.path)
        except BaseException:
            self.close()
            raise

    def store(self) -> None:
        """Store the content for the next call, if git has changed it."""
        with suppress(OSError):
            status = os.stat(self.path)
            if (status.st_ino, status.st_mtime_ns) == (self._written.st_ino, self._written.st_mtime_ns):
                return
            content = read_regular_file(self.path, follow_link=False, max_bytes=MAX_COPIED_BYTES)
            # The clock of the files may be slower than the one of this file.
            trusted = latest_settled_time(status.st_mtime_ns)
            if _latest_change(content, default=trusted) < trusted:
                self._cache.save(self._name, _STORED.pack(self._key, trusted) + content)

    def close(self) -> None:
        """Remove the file, and the lock of a git process that was killed."""
        for path in (self.path, f"{self.path}.lock"):
            with suppress(OSError):
                os.unlink(path)


def copy_index(
    git_dir: Path, top: Path, settings: Mapping[str, bytes | None], attribute_files: list[Path], cache: ResultCache
) -> PrivateIndex | None:
    """Return a copy of the index of a worktree; None if git has to read the index where it is.

    Args:
        git_dir: The repository.
        top: The top folder of the worktree.
        settings: The settings of git, of which some decide whether a file counts as changed.
        attribute_files: Files with attributes, which also decide about this.
        cache: Where copies are stored.
    """
    if not cache.is_enabled or settings.get("extensions.objectformat", b"sha1") != b"sha1":
        return None
    path = git_dir / "index"
    try:
        status = os.stat(path)
        content = read_regular_file(path, max_bytes=MAX_COPIED_BYTES)
        if len(content) < HEADER.size or content[:4] != b"DIRC" or HEADER.unpack_from(content)[1] not in _VERSIONS:
            return None
        if _SPLIT in content or _SPARSE in content:
            return None
        facts = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, sorted(settings.items()))
        key = hashlib.sha256(repr(facts).encode())
        for file in attribute_files:
            key.update(hashlib.sha256(_content_or_nothing(file)).digest())
        key.update(content)
        name = f"git index of {top} in {git_dir}"
        changed_ns = status.st_mtime_ns
        stored = cache.load(name)
        if stored is not None and stored[:32] == key.digest():
            _, changed_ns = _STORED.unpack_from(stored)
            content = stored[_STORED.size :]
        return PrivateIndex(cache, name, key.digest(), content, changed_ns)
    except OSError:
        return None


def _content_or_nothing(file: Path) -> bytes:
    try:
        return read_regular_file(file, max_bytes=MAX_SMALL_FILE_BYTES)
    except OSError:
        return b""


def _latest_change(content: bytes, default: int) -> int:
    """Return the latest time of a status change in an index, in nanoseconds since the epoch.

    A file that was changed again at that time may have the same status as before.

    Args:
        content: The index.
        default: The result for an index of another form.
    """
    try:
        _, version, count = HEADER.unpack_from(content)
        return default if version not in _VERSIONS else max(_change_times(content, count), default=0)
    except (struct.error, ValueError):
        return default


def _change_times(content: bytes, count: int) -> Iterator[int]:
    position = HEADER.size
    for _ in range(count):
        seconds, nanoseconds, flags = _ENTRY.unpack_from(content, position)
        yield seconds * 1_000_000_000 + nanoseconds
        name = position + _ENTRY.size + (2 if flags & _EXTENDED else 0)
        length = flags & _NAME_LENGTH
        end = name + length if length < _NAME_LENGTH else content.index(b"\0", name + length)
        # Entries are padded with one to eight NULs to a multiple of eight bytes.
        position += (end - position + 8) // 8 * 8
