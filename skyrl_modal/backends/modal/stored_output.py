"""The output of a run on Modal, as it is stored: in output.log, or in Modal's log. It can be read from any position.

Modal's client can read a file of a volume only from its beginning (``Volume.read_file``, modal 1.6.4; the RPC has a
range, to which the client has no supported access). The container therefore stores the end of output.log in a second
file, from which the last lines are read. Everything else is downloaded to a temporary file.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterable
from typing import Self

from skyrl_modal.backends.modal.retry import retry_transient
from skyrl_modal.backends.modal.run_folder import VolumeRunFolder
from skyrl_modal.protocol.run_folder import OUTPUT_END_BYTES, OUTPUT_END_FILE, OUTPUT_FILE

#: Number of bytes that are returned at a time.
_PART_BYTES = 1 << 20


class LogCopy:
    """Text of Modal's log in a temporary file.

    Attributes:
        size: Number of its bytes in UTF-8.
    """

    def __init__(self) -> None:
        self.size = 0
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # it is closed with this object

    @classmethod
    async def of(cls, texts: AsyncIterable[str]) -> Self:
        """Copy texts to a file."""
        copy = cls()
        async for text in texts:
            copy.size += copy._file.write(text.encode("utf-8", "replace"))
        return copy

    async def read(self, offset: int) -> bytes:
        """Return a part that starts at an offset; empty at the end."""
        return os.pread(self._file.fileno(), _PART_BYTES, offset)


class StoredOutput:
    """output.log on the volume of a run that has ended.

    Attributes:
        size: Number of its bytes.
    """

    def __init__(self, folder: VolumeRunFolder, size: int, *, has_end_file: bool) -> None:
        self.size = size
        self._folder = folder
        self._end: bytes | None = None
        self._has_end_file = has_end_file
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # it is closed with this object
        self._available = 0
        self._has_grown = asyncio.Event()
        self._download: asyncio.Future[None] | None = None

    @classmethod
    async def find(cls, folder: VolumeRunFolder) -> Self | None:
        """Return the output in a run's folder; None if there is none."""
        sizes = await folder.file_sizes()
        size = sizes.get(OUTPUT_FILE)
        return None if size is None else cls(folder, size, has_end_file=OUTPUT_END_FILE in sizes)

    async def read(self, offset: int) -> bytes:
        """Return a part that starts at an offset; empty at the end."""
        if offset >= self.size:
            return b""
        if self._has_end_file and self._available <= offset and offset >= self.size - OUTPUT_END_BYTES:
            end = await self._read_end()
            begin = self.size - len(end)
            if offset >= begin:
                return end[offset - begin :]
        await self._wait_for_download(offset)
        return os.pread(self._file.fileno(), min(_PART_BYTES, max(0, self._available - offset)), offset)

    async def _read_end(self) -> bytes:
        """Return the separately stored end; empty if it is not the end of this output.log.

        A container that was killed may have left the end of an earlier state of the file.
        """
        if self._end is None:
            content = await self._folder.read(OUTPUT_END_FILE) or b""
            size, _, end = content.partition(b"\n")
            self._end = end if size == b"%d" % self.size and len(end) == min(self.size, OUTPUT_END_BYTES) else b""
        return self._end

    async def _wait_for_download(self, offset: int) -> None:
        """Wait until the byte at an offset was downloaded, or the file has ended."""
        if self._download is None:
            self._download = asyncio.ensure_future(retry_transient(self._copy))
            self._download.add_done_callback(lambda _: self._has_grown.set())
        while self._available <= offset and not self._download.done():
            self._has_grown.clear()
            await self._has_grown.wait()
        if self._download.done():
            self._download.result()

    async def _copy(self) -> None:
        """Download the file. After a lost connection, what was downloaded before is skipped."""
        position = 0
        try:
            async with self._folder.open(OUTPUT_FILE) as parts:
                async for part in parts:
                    new = part[max(0, self._available - position) :]
                    position += len(part)
                    if new:
                        self._available += self._file.write(new)
                        self._has_grown.set()
        except FileNotFoundError:  # it was removed after it was listed
            return
