"""The format of the archives in which a backend sends the files of a mount to the container.

The contents of files are stored in frames of about one MiB, each of which is compressed on its own. A pack is a file of
frames that several archives refer to. An archive describes one tree of files: it begins with the frames of the contents
that its pack does not have, and ends with the manifest. Contents of more than ``LARGE_CONTENT`` bytes are files of
their own. Every part is identified by its SHA-256, so that damage is detected.

Names are bytes, so that every name of a Unix file system is possible.
"""

from __future__ import annotations

import hashlib
import json
import stat
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import BinaryIO, NamedTuple

from skyrl_modal.protocol.codec import ProtocolError

#: The folder of the container with the archives, the packs and the large contents.
ARCHIVE_FOLDER = "/__skyrl_modal/files"
#: Size in bytes above which a content is a file of its own.
LARGE_CONTENT = 4 << 20
#: Largest size of the contents of a frame in bytes. Readers refuse larger frames.
MAX_FRAME = LARGE_CONTENT + (1 << 20)

_MAGIC = b"skyrl-modal files 1\n"
#: At the end of an archive: the size and the SHA-256 of the compressed manifest.
_FOOTER = struct.Struct("<Q32s20s")
#: Mode, frame, position in the frame, size.
_ENTRY = struct.Struct("<IiIQ")
_MAX_MANIFEST = 1 << 30

#: Values of ``Entry.frame`` for what is not in a frame.
IN_FILE_OF_ITS_OWN = -1
WITHOUT_CONTENT = -2


class Frame(NamedTuple):
    """A part of a pack or an archive.

    Attributes:
        in_pack: Whether it is in the pack.
        position: Its position in the file.
        stored: Its size in the file.
        size: Its size when it is decompressed. It is not compressed if both sizes are equal.
        sha256: SHA-256, in hex, of the stored bytes.
    """

    in_pack: bool
    position: int
    stored: int
    size: int
    sha256: str


class Entry(NamedTuple):
    """A file, symbolic link or empty folder. The content of a link is the path of its target.

    Attributes:
        path: The path below the root of the tree, with ``/`` between the parts.
        mode: Kind and permissions, as in ``os.stat_result.st_mode``.
        frame: Index of the frame with the content, or one of the constants of this module.
        position: Position of the content in the decompressed frame; for a file of its own, the index in
            ``Manifest.large``.
        size: Size of the content in bytes.
    """

    path: bytes
    mode: int
    frame: int
    position: int
    size: int


class Manifest(NamedTuple):
    """The files of a tree, and where their contents are.

    Attributes:
        pack: SHA-256 of the pack, in hex; None if there is none.
        frames: The frames that the entries refer to.
        large: SHA-256, in hex, of the contents that are files of their own.
        entries: The files.
    """

    pack: str | None
    frames: Sequence[Frame]
    large: Sequence[str]
    entries: Sequence[Entry]


def write_manifest(manifest: Manifest, file: BinaryIO) -> str:
    """Write a manifest to the end of an archive.

    Args:
        manifest: The manifest.
        file: The archive, which contains its frames.

    Returns:
        The SHA-256 of the manifest, in hex, which identifies the archive.
    """
    header = {"pack": manifest.pack, "frames": manifest.frames, "large": manifest.large}
    head = json.dumps(header).encode()
    records = b"".join([_ENTRY.pack(*entry[1:]) for entry in manifest.entries])
    names = b"\0".join([entry.path for entry in manifest.entries])
    sizes = struct.pack("<QQ", len(head), len(manifest.entries))
    data = zlib.compress(sizes + head + records + names, 1)
    digest = hashlib.sha256(data)
    file.write(data + _FOOTER.pack(len(data), digest.digest(), _MAGIC))
    return digest.hexdigest()


def read_identity(file: BinaryIO) -> str:
    """Return the SHA-256 of the manifest of an archive, in hex, as the archive states it.

    Raises:
        ProtocolError: The file is no complete archive.
    """
    return _read_footer(file)[1].hex()


def _read_footer(file: BinaryIO) -> tuple[int, bytes, int]:
    """Return size, SHA-256 and position of the manifest."""
    end = file.seek(0, 2) - _FOOTER.size
    if end < 0:
        raise ProtocolError("it is too short")
    file.seek(end)
    size, sha, magic = _FOOTER.unpack(file.read(_FOOTER.size))
    if magic != _MAGIC:
        raise ProtocolError("it does not end as an archive does")
    if size > min(end, _MAX_MANIFEST):
        raise ProtocolError("its manifest is larger than the file")
    return size, sha, end - size


def read_manifest(file: BinaryIO, sha256: str | None = None, *, with_entries: bool = True) -> Manifest:
    """Read and check the manifest of an archive.

    Args:
        file: The archive.
        sha256: What the SHA-256 of the manifest has to be; None for what the archive states.
        with_entries: Whether to decode the entries. Without them, reading takes a tenth of the time.

    Raises:
        ProtocolError: The archive is damaged, or another one.
    """
    size, stated, position = _read_footer(file)
    if sha256 is not None and stated.hex() != sha256:
        raise ProtocolError(f"it is the archive {stated.hex()}, and not {sha256}")
    file.seek(position)
    data = file.read(size)
    if hashlib.sha256(data).digest() != stated:
        raise ProtocolError("its manifest has another SHA-256")
    try:
        return _decode(decompress(data, _MAX_MANIFEST), with_entries=with_entries)
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise ProtocolError(f"its manifest cannot be read: {error}") from error


def decompress(data: bytes, limit: int) -> bytes:
    """Decompress data.

    Raises:
        ProtocolError: The data are damaged, or longer than ``limit`` bytes when they are decompressed.
    """
    decompressor = zlib.decompressobj()
    try:
        content = decompressor.decompress(data, limit + 1)
    except zlib.error as error:
        raise ProtocolError(str(error)) from error
    if len(content) > limit or not decompressor.eof:
        raise ProtocolError(f"{len(data)} compressed bytes do not end after {limit} bytes")
    return content


def _decode(data: bytes, *, with_entries: bool) -> Manifest:
    head_size, count = struct.unpack_from("<QQ", data)
    middle = 16 + head_size
    end = middle + count * _ENTRY.size
    header: Mapping[str, list[str]] = json.loads(data[16:middle])
    frames = [Frame(*frame) for frame in header["frames"]]
    entries: list[Entry] = []
    if count and with_entries:
        names, records = data[end:].split(b"\0"), _ENTRY.iter_unpack(data[middle:end])
        entries = [Entry(name, *record) for name, record in zip(names, records, strict=True)]
    pack = header["pack"]
    manifest = Manifest(None if pack is None else str(pack), frames, header["large"], entries)
    for frame in frames:
        if min(frame.position, frame.stored, frame.size) < 0 or max(frame.stored, frame.size) > MAX_FRAME:
            raise ValueError(f"a frame has {frame.size} bytes")
    for entry in entries:
        _check(entry, manifest)
    _check_folders(entries)
    return manifest


def _check(entry: Entry, manifest: Manifest) -> None:
    """Raise ValueError for an entry that no tree of files can have, or that refers to no content."""
    path, mode, frame, position, size = entry
    if path.startswith(b"/") or not {b"", b".", b".."}.isdisjoint(path.split(b"/")):
        raise ValueError(f"the path {path!r} leads out of the tree")
    kind = stat.S_IFMT(mode)
    if kind not in (stat.S_IFREG, stat.S_IFLNK, stat.S_IFDIR):
        raise ValueError(f"{path!r} has the mode {mode:o}")
    if frame == WITHOUT_CONTENT:
        is_complete = kind == stat.S_IFDIR
    elif frame == IN_FILE_OF_ITS_OWN:
        is_complete = kind == stat.S_IFREG and position < len(manifest.large)
    else:
        is_complete = kind != stat.S_IFDIR and 0 <= frame < len(manifest.frames)
        is_complete = is_complete and position + size <= manifest.frames[frame].size
    if not is_complete:
        raise ValueError(f"{path!r} has no content")


def _check_folders(entries: Sequence[Entry]) -> None:
    """Raise ValueError if a path occurs twice, or if a file or a link contains another entry."""
    paths = {entry.path for entry in entries}
    if len(paths) != len(entries):
        raise ValueError("a path occurs twice")
    folders = {entry.path for entry in entries if stat.S_ISDIR(entry.mode)}
    for folder in {entry.path.rpartition(b"/")[0] for entry in entries}:
        parent = folder
        while parent:
            if parent in paths and parent not in folders:
                raise ValueError(f"{parent!r} is a file and a folder")
            parent = parent.rpartition(b"/")[0]
