"""Archives of snapshots, which are sent to Modal instead of single files.

Modal's client hashes each file of a folder in each run, and asks the server for each. For two files that is quick: the
archive of the snapshot, and the pack that it refers to. The pack has most of the contents, and is shared by the
archives of later snapshots until a quarter of the contents has changed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from skyrl_modal.errors import SnapshotError
from skyrl_modal.gitfiles.digest import LINK_MODE
from skyrl_modal.protocol.codec import ProtocolError
from skyrl_modal.protocol.file_archive import (
    IN_FILE_OF_ITS_OWN,
    LARGE_CONTENT,
    MAX_FRAME,
    Entry,
    Frame,
    Manifest,
    read_identity,
    read_manifest,
    write_manifest,
)
from skyrl_modal.snapshots.archive_cache import ArchiveCache, Sending, mark_used
from skyrl_modal.snapshots.snapshot import Entries, Snapshot

#: A new pack is made if more than this part of the contents is not in an existing one ...
MAX_DIFFERENCES = 0.25
#: ... and more than this number of bytes.
MIN_NEW_PACK = 256 << 10
#: A pack is used only if the snapshot has at least this part of its contents, since the container receives all of it.
MIN_USE_OF_PACK = 0.5
#: Size in bytes at which a frame is complete.
_FRAME_SIZE = MAX_FRAME - LARGE_CONTENT
#: Size of the beginning of a frame that is compressed to find out whether the frame can be compressed.
_SAMPLE = 64 << 10
#: Part of its size that a frame may have when it is compressed. Otherwise it is stored as it is.
_MAX_COMPRESSED = 0.9
#: SHA-256, frame, position in the frame, size.
_INDEX_RECORD = struct.Struct("<32siII")
_ATTEMPTS = 3

#: Where a content is: frame, position in the frame, and size.
Place = tuple[int, int, int]


def archive_snapshot(snapshot: Snapshot, sending: Sending, cache: ArchiveCache) -> str:
    """Add the archive of a snapshot, with everything that it refers to, to the files that are sent.

    Args:
        snapshot: The snapshot.
        sending: The files that are sent.
        cache: The archives of earlier snapshots.

    Returns:
        The name of the archive in the folder of the files that are sent.

    Raises:
        SnapshotError: The archive cannot be written, or the snapshot is damaged.
    """
    for _ in range(_ATTEMPTS):
        try:
            return _add_archive(snapshot, sending, cache)
        except FileNotFoundError:
            continue  # another process has removed a part of it from the cache
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise _describe(error, cache) from error
        try:
            cache.remove_unused(float("inf"), dry_run=False)
            return _add_archive(snapshot, sending, cache)
        except OSError as error:
            raise _describe(error, cache) from error
    raise SnapshotError(str(cache.folder), "archives are removed faster than they can be written: try again")


def _describe(error: OSError, cache: ArchiveCache) -> SnapshotError:
    path = error.filename if isinstance(error.filename, str) else str(cache.folder)
    reason = f"the archive of the files cannot be written: {error.strerror}"
    return SnapshotError(path, f"{reason}. Free some space, or set XDG_CACHE_HOME to a folder with more space")


def _add_archive(snapshot: Snapshot, sending: Sending, cache: ArchiveCache) -> str:
    path = cache.tree(snapshot.digest)
    found = _read_archive(path, cache)
    if found is None:
        _write_archive(snapshot, cache)
        found = _read_archive(path, cache)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    name, manifest = found
    sending.add(path, name)
    mark_used(path)
    if manifest.pack is not None:
        sending.add(cache.pack(manifest.pack), manifest.pack)
        mark_used(cache.pack(manifest.pack))
    if manifest.large:
        with path.open("rb") as file:
            entries = read_manifest(file, name).entries
        for entry in entries:
            if entry.frame == IN_FILE_OF_ITS_OWN:
                sending.add(snapshot.path / os.fsdecode(entry.path), manifest.large[entry.position])
    return name


def _read_archive(path: Path, cache: ArchiveCache) -> tuple[str, Manifest] | None:
    """Return a stored archive: its name, and its manifest without entries. None if a part is absent or damaged."""
    try:
        with path.open("rb") as file:
            name = read_identity(file)
            manifest = read_manifest(file, name, with_entries=False)
    except (FileNotFoundError, ProtocolError):
        return None
    if manifest.pack is not None and not _has_frames(cache.pack(manifest.pack), manifest.frames):
        return None
    return name, manifest


def _has_frames(pack: Path, frames: Iterable[Frame]) -> bool:
    """Return whether a pack has its full size. Its content is checked in the container."""
    try:
        size = pack.stat().st_size
    except FileNotFoundError:
        return False
    return all(frame.position + frame.stored <= size for frame in frames if frame.in_pack)


def _write_archive(snapshot: Snapshot, cache: ArchiveCache) -> None:
    """Store the archive of a snapshot, and a new pack if no existing one has most of the contents."""
    entries = snapshot.entries()
    contents = _Contents(snapshot.path, entries)
    pack = _find_pack(contents, cache) or _write_pack(contents, cache)
    known = pack.places if pack is not None else {}
    with cache.new_file("trees") as (file, target):
        writer = _FrameWriter(file, in_pack=False, first=0 if pack is None else len(pack.frames))
        for sha in contents.missing(known):
            writer.add(sha, contents.read(sha))
        writer.finish()
        places = {**known, **writer.places}
        large: dict[bytes, int] = {}
        files = []
        for path, (mode, sha) in entries.items():
            if sha in contents.large:
                number = large.setdefault(sha, len(large))
                files.append(Entry(os.fsencode(path), mode, IN_FILE_OF_ITS_OWN, number, contents.large[sha]))
            else:
                files.append(Entry(os.fsencode(path), mode, *places[sha]))
        frames = [*([] if pack is None else pack.frames), *writer.frames]
        write_manifest(Manifest(None if pack is None else pack.name, frames, [sha.hex() for sha in large], files), file)
        target.append(cache.tree(snapshot.digest))
    cache.evict()


class _Contents:
    """The different contents of a snapshot.

    Args:
        folder: The folder of the snapshot.
        entries: Mode and SHA-256 of each file.

    Attributes:
        large: Size of the contents that are sent as files of their own.
        sizes: Size of the other contents.
    """

    def __init__(self, folder: Path, entries: Entries) -> None:
        self._top = os.fspath(folder) + "/"
        # Sorted by name, so that similar files are in one frame.
        self._paths = {sha: (path, mode) for path, (mode, sha) in sorted(entries.items(), reverse=True)}
        self.sizes: dict[bytes, int] = {}
        self.large: dict[bytes, int] = {}
        for sha, (path, _) in self._paths.items():
            size = os.lstat(self._top + path).st_size
            (self.large if size > LARGE_CONTENT else self.sizes)[sha] = size

    def missing(self, known: dict[bytes, Place]) -> list[bytes]:
        """Return the contents that are not known, in the order of their paths."""
        return sorted((sha for sha in self.sizes if sha not in known), key=lambda sha: self._paths[sha][0])

    def read(self, sha: bytes) -> bytes:
        """Read a content.

        Raises:
            SnapshotError: The file has another one.
        """
        path, mode = self._paths[sha]
        if mode == LINK_MODE:
            data = os.fsencode(os.readlink(self._top + path))
        else:
            with open(self._top + path, "rb") as file:
                data = file.read(LARGE_CONTENT + 1)
        if hashlib.sha256(data).digest() != sha:
            raise SnapshotError(self._top + path, "the snapshot is damaged: run `skyrl-modal clean`")
        return data


class _Pack:
    """A stored pack.

    Args:
        name: Its SHA-256, in hex.
        frames: Its frames.
        places: Where its contents are.
    """

    def __init__(self, name: str, frames: Sequence[Frame], places: dict[bytes, Place]) -> None:
        self.name = name
        self.frames = frames
        self.places = places


def _find_pack(contents: _Contents, cache: ArchiveCache) -> _Pack | None:
    """Return a pack that has most of the contents; None if there is none, or if it mostly has others."""
    total = sum(contents.sizes.values())
    for name in cache.packs():
        pack = _read_index(name, cache)
        if pack is None:
            continue
        missing = sum(size for sha, size in contents.sizes.items() if sha not in pack.places)
        size = sum(place[2] for place in pack.places.values())
        if missing <= max(MAX_DIFFERENCES * total, MIN_NEW_PACK) and total - missing >= MIN_USE_OF_PACK * size:
            return pack
    return None


def _write_pack(contents: _Contents, cache: ArchiveCache) -> _Pack | None:
    """Store a pack of all contents; None for a tree that is as small as the differences to a pack may be."""
    if sum(contents.sizes.values()) <= MIN_NEW_PACK:
        return None
    with cache.new_file("packs") as (file, target):
        writer = _FrameWriter(file, in_pack=True)
        for sha in contents.missing({}):
            writer.add(sha, contents.read(sha))
        writer.finish()
        name = writer.sha256.hexdigest()
        target.append(cache.pack(name))
    pack = _Pack(name, writer.frames, writer.places)
    with cache.new_file("indexes") as (file, target):
        file.write(_encode_index(pack))
        target.append(cache.index(name))
    return pack


def _encode_index(pack: _Pack) -> bytes:
    head = json.dumps(pack.frames).encode() + b"\n"
    body = head + b"".join([_INDEX_RECORD.pack(sha, *place) for sha, place in pack.places.items()])
    return body + hashlib.sha256(body).digest()


def _read_index(name: str, cache: ArchiveCache) -> _Pack | None:
    """Return a stored pack; None if it is damaged, or was removed."""
    try:
        data = cache.index(name).read_bytes()
    except FileNotFoundError:
        return None
    body = data[:-32]
    if hashlib.sha256(body).digest() != data[-32:]:
        return None
    head, _, records = body.partition(b"\n")
    frames = [Frame(*frame) for frame in json.loads(head)]
    if not _has_frames(cache.pack(name), frames):
        return None
    return _Pack(name, frames, {record[0]: record[1:] for record in _INDEX_RECORD.iter_unpack(records)})


class _FrameWriter:
    """Writes contents as frames.

    Args:
        file: The file.
        in_pack: Whether the file is a pack.
        first: The index of the first frame.

    Attributes:
        frames: The frames.
        places: Where the contents are.
        sha256: The SHA-256 of the file.
    """

    def __init__(self, file: BinaryIO, *, in_pack: bool, first: int = 0) -> None:
        self.frames: list[Frame] = []
        self.places: dict[bytes, Place] = {}
        self.sha256 = hashlib.sha256()
        self._file, self._in_pack, self._first = file, in_pack, first
        self._parts: list[bytes] = []
        self._size = self._position = 0

    def add(self, sha: bytes, data: bytes) -> None:
        """Add a content."""
        self.places[sha] = (self._first + len(self.frames), self._size, len(data))
        self._parts.append(data)
        self._size += len(data)
        if self._size >= _FRAME_SIZE:
            self.finish()

    def finish(self) -> None:
        """Complete the current frame."""
        if not self._parts:
            return
        data = b"".join(self._parts)
        stored = _compress(data)
        self._file.write(stored)
        self.sha256.update(stored)
        sha = hashlib.sha256(stored).hexdigest()
        self.frames.append(Frame(self._in_pack, self._position, len(stored), len(data), sha))
        self._position += len(stored)
        self._parts, self._size = [], 0


def _compress(data: bytes) -> bytes:
    """Return compressed data, or the data themselves if that saves little."""
    sample = data[:_SAMPLE]
    if len(zlib.compress(sample, 1)) > _MAX_COMPRESSED * len(sample):
        return data
    stored = zlib.compress(data, 1)
    return stored if len(stored) < len(data) else data


def files_to_send(snapshots: Iterable[tuple[str, Snapshot]]) -> tuple[Sending | None, dict[str, str]]:
    """Return the files that are sent for mounts.

    Args:
        snapshots: The path in the container and the snapshot of each mount.

    Returns:
        The files, None if there are no mounts; and for each path the name of its archive.

    Raises:
        SnapshotError: They cannot be written.
    """
    sending: Sending | None = None
    archives: dict[str, str] = {}
    for remote_path, snapshot in snapshots:
        cache = ArchiveCache(snapshot.path.parents[1])
        if sending is None:
            try:
                cache.create()
                sending = cache.start_sending()
            except OSError as error:
                raise _describe(error, cache) from error
        try:
            archives[remote_path] = archive_snapshot(snapshot, sending, cache)
        except BaseException:
            sending.release()
            raise
    return sending, archives
