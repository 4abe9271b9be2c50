"""A run's folder on its volume on Modal, read from this machine."""

from __future__ import annotations

import asyncio
import contextlib
import io
import posixpath
from collections.abc import AsyncIterator
from typing import TypeVar

import modal
import modal.exception

from skyrl_modal.backends.modal.errors import suppressed_client_errors
from skyrl_modal.backends.modal.retry import retry_transient
from skyrl_modal.errors import RecordError
from skyrl_modal.protocol.codec import ProtocolError, from_json, to_json
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.result import RunResultRecord
from skyrl_modal.protocol.run_folder import MAX_RECORD_BYTES, OUTPUT_FILE, RESULT_FILE, STATUS_FILE
from skyrl_modal.protocol.status import StatusRecord

T = TypeVar("T")


class VolumeRunFolder:
    """The folder of a run on the run's first writable volume, as far as it has been committed.

    Args:
        job: The run.

    Attributes:
        volume: The volume's name; empty if the run has no writable volume.
    """

    def __init__(self, job: Job) -> None:
        self.volume, self._path = "", ""
        if job.run_folder_volume is not None:
            volume, path = job.run_folder_volume
            self.volume, self._path = volume.name, f"/{path}"
        self._reference: modal.Volume | None = None

    async def read_status(self) -> StatusRecord | None:
        """Read state.json; None if there is none.

        Raises:
            RecordError: It is damaged, or was written by a newer version.
        """
        return await self._read_record(StatusRecord, STATUS_FILE)

    async def read_result(self) -> RunResultRecord | None:
        """Read result.json; None if there is none.

        Raises:
            RecordError: It is damaged, or was written by a newer version.
        """
        return await self._read_record(RunResultRecord, RESULT_FILE)

    async def write_result(self, record: RunResultRecord, *, timeout: float) -> None:
        """Write result.json for a container that cannot do so any more, as far as Modal permits it.

        Args:
            record: The result.
            timeout: Seconds after which the result is left unwritten.
        """
        if not self.volume:
            return
        with suppressed_client_errors():
            async with asyncio.timeout(timeout):
                async with modal.Volume.from_name(self.volume).batch_upload(force=True) as batch:
                    batch.put_file(io.BytesIO(to_json(record).encode()), f"{self._path}/{RESULT_FILE}")

    async def has_result(self) -> bool:
        """Return whether there is a result.json, in whatever condition."""
        return await self.read(RESULT_FILE, limit=1) is not None

    async def read_output(self) -> bytes | None:
        """Read output.log; None if there is none."""
        return await self.read(OUTPUT_FILE)

    async def read(self, name: str, *, limit: int | None = None) -> bytes | None:
        """Read a file; None if there is none. While Modal cannot be reached, it waits.

        Args:
            name: Its path in the folder.
            limit: Number of bytes to read at most; None for all.
        """
        if not self.volume:
            return None
        return await retry_transient(self._read_once, name, limit)

    async def _read_once(self, name: str, limit: int | None) -> bytes | None:
        if self._reference is None:
            self._reference = modal.Volume.from_name(self.volume)
        content = bytearray()
        try:
            async with contextlib.aclosing(self._reference.read_file.aio(f"{self._path}/{name}")) as parts:
                async for part in parts:
                    content += part
                    if limit is not None and len(content) >= limit:
                        break
        except (FileNotFoundError, modal.exception.NotFoundError):
            return None
        return bytes(content if limit is None else content[:limit])

    async def file_sizes(self) -> dict[str, int]:
        """Return the sizes of the files in the folder by their names; nothing if there is no folder."""
        return await retry_transient(self._list_sizes_once) if self.volume else {}

    async def _list_sizes_once(self) -> dict[str, int]:
        volume = modal.Volume.from_name(self.volume)
        try:
            entries = await volume.listdir.aio(self._path)
        except modal.exception.NotFoundError:
            return {}
        return {posixpath.basename(entry.path): entry.size for entry in entries if entry.type.name == "FILE"}

    @contextlib.asynccontextmanager
    async def open(self, name: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a file; the context yields its content in parts, from its beginning.

        Raises:
            FileNotFoundError: There is no such file.
        """
        volume = modal.Volume.from_name(self.volume)
        async with contextlib.aclosing(volume.read_file.aio(f"{self._path}/{name}")) as parts:
            yield parts

    async def _read_record(self, cls: type[T], name: str) -> T | None:
        content = await self.read(name, limit=MAX_RECORD_BYTES + 1)
        if content is None:
            return None
        where = f"{self._path}/{name} on the volume {self.volume}"
        if len(content) > MAX_RECORD_BYTES:
            raise RecordError(where, f"it is larger than {MAX_RECORD_BYTES >> 20} MiB")
        try:
            return from_json(cls, content)
        except ProtocolError as error:
            raise RecordError(where, str(error)) from error

    async def list_files(self, folder: str) -> dict[str, int]:
        """Return the sizes of the files below a folder of the run's folder, by their paths relative to it.

        Raises:
            FileNotFoundError: There is no such folder.
        """
        if not self.volume:
            raise FileNotFoundError("this run has no writable volume, so none of its files were kept")
        root = f"{self._path}/{folder}"
        found = await retry_transient(self._list_once, root)
        if found is None:
            raise FileNotFoundError(f"the volume {self.volume} has no folder {root}")
        return {path.removeprefix(f"{root}/"): size for path, size in found.items()}

    async def _list_once(self, root: str) -> dict[str, int] | None:
        volume = modal.Volume.from_name(self.volume)
        try:
            entries = [entry async for entry in volume.iterdir.aio(root, recursive=True)]
        except modal.exception.NotFoundError:
            return None
        return {f"/{entry.path.lstrip('/')}": entry.size for entry in entries if entry.type.name == "FILE"}
