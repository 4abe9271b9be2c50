"""Single objects out of git's object store, loose or packed.

Needed in sparse checkouts only: git reads a ``.gitignore`` that is left out of the worktree from the index, and a
sparse index names whole folders by their tree.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from attrs import field, frozen

_TYPES = {1: b"commit", 2: b"tree", 3: b"blob", 4: b"tag"}
_OFFSET_DELTA, _NAMED_DELTA = 6, 7
_LARGE = 0x80000000


class ObjectMissing(Exception):
    """The object is not in the store, for example because the clone is a partial one."""


@frozen
class Objects:
    """An object store with its alternates.

    Attributes:
        folder: The ``objects`` folder.
        hash_size: 20 for SHA-1, 32 for SHA-256.
    """

    folder: Path
    hash_size: int = 20
    _indexes: dict[Path, bytes] = field(factory=dict, init=False, repr=False, eq=False)

    def blob(self, object_id: bytes) -> bytes:
        """The content of an object.

        Raises:
            ObjectMissing: It is not there.
        """
        return self._read(object_id)[1]

    def files_of_tree(self, object_id: bytes, prefix: bytes = b"") -> Iterator[tuple[bytes, int, bytes]]:
        """Path, mode and object of each file in a tree and below it."""
        data = self._read(object_id)[1]
        position = 0
        while position < len(data):
            blank, end = data.index(b" ", position), data.index(b"\0", position)
            mode, path = int(data[position:blank], 8), prefix + data[blank + 1 : end]
            position = end + 1 + self.hash_size
            child = data[end + 1 : position]
            if mode == 0o040000:
                yield from self.files_of_tree(child, path + b"/")
            else:
                yield path, mode, child

    def _folders(self) -> Iterator[Path]:
        waiting, seen = [self.folder], set()
        while waiting:
            folder = waiting.pop(0)
            if folder in seen:
                continue
            seen.add(folder)
            yield folder
            try:
                lines = (folder / "info" / "alternates").read_text("utf-8", "surrogateescape").splitlines()
            except (FileNotFoundError, NotADirectoryError):
                continue
            waiting.extend(folder / line for line in lines if line and not line.startswith("#"))

    def _read(self, object_id: bytes) -> tuple[bytes, bytes]:
        name = object_id.hex()
        for folder in self._folders():
            try:
                loose = zlib.decompress((folder / name[:2] / name[2:]).read_bytes())
            except FileNotFoundError:
                pass
            else:
                header, _, content = loose.partition(b"\0")
                return header.split(b" ")[0], content
            for index in sorted((folder / "pack").glob("*.idx")):
                offset = self._offset(index, object_id)
                if offset is not None:
                    with index.with_suffix(".pack").open("rb") as pack:
                        # A pack may have gigabytes, of which a few kilobytes are wanted.
                        data = mmap.mmap(pack.fileno(), 0, access=mmap.ACCESS_READ)
                        with data:
                            return self._packed(data, offset)
        raise ObjectMissing(name)

    def _offset(self, path: Path, object_id: bytes) -> int | None:
        data = self._indexes.get(path)
        if data is None:
            data = self._indexes[path] = path.read_bytes()
        if data[:8] != b"\xfftOc\0\0\0\x02":
            return None
        fanout = struct.unpack_from(">256L", data, 8)
        low, high = fanout[object_id[0] - 1] if object_id[0] else 0, fanout[object_id[0]]
        names = 8 + 1024
        while low < high:
            middle = (low + high) // 2
            found = data[names + middle * self.hash_size : names + (middle + 1) * self.hash_size]
            if found == object_id:
                offsets = names + fanout[255] * (self.hash_size + 4)
                offset: int = struct.unpack_from(">L", data, offsets + 4 * middle)[0]
                if offset & _LARGE:
                    offset = struct.unpack_from(">Q", data, offsets + 4 * fanout[255] + 8 * (offset - _LARGE))[0]
                return offset
            low, high = (middle + 1, high) if found < object_id else (low, middle)
        return None

    def _packed(self, data: mmap.mmap, offset: int) -> tuple[bytes, bytes]:
        position = offset
        byte = data[position]
        kind = byte >> 4 & 7
        while byte & 0x80:
            position += 1
            byte = data[position]
        position += 1
        if kind in _TYPES:
            return _TYPES[kind], _inflated(data, position)
        if kind == _OFFSET_DELTA:
            byte = data[position]
            back = byte & 0x7F
            while byte & 0x80:
                position += 1
                byte = data[position]
                back = (back + 1) << 7 | byte & 0x7F
            name, base = self._packed(data, offset - back)
            return name, _patched(base, _inflated(data, position + 1))
        if kind == _NAMED_DELTA:
            name, base = self._read(data[position : position + self.hash_size])
            return name, _patched(base, _inflated(data, position + self.hash_size))
        raise ObjectMissing(f"an entry of kind {kind} in a pack")


def _inflated(data: mmap.mmap, position: int) -> bytes:
    inflater = zlib.decompressobj()
    content = bytearray()
    while not inflater.eof:
        chunk = data[position : position + 65536]
        if not chunk:
            raise ObjectMissing("a pack ends in the middle of an object")
        content += inflater.decompress(chunk)
        position += len(chunk)
    return bytes(content)


def _patched(base: bytes, delta: bytes) -> bytes:
    position = 0
    for _ in range(2):  # the sizes before and after, which the content tells as well
        while delta[position] & 0x80:
            position += 1
        position += 1
    content = bytearray()
    while position < len(delta):
        byte = delta[position]
        position += 1
        if byte & 0x80:
            numbers = [0] * 7
            for bit in range(7):
                if byte >> bit & 1:
                    numbers[bit] = delta[position]
                    position += 1
            start = int.from_bytes(bytes(numbers[:4]), "little")
            size = int.from_bytes(bytes(numbers[4:]), "little") or 0x10000
            content += base[start : start + size]
        else:
            content += delta[position : position + byte]
            position += byte
    return bytes(content)
