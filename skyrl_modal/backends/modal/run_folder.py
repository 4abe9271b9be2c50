"""A run's folder on its volume on Modal, as it can be read from here."""

from __future__ import annotations

import asyncio

import modal
import modal.exception

from skyrl_modal.backends.modal.errors import TRANSIENT, words_of
from skyrl_modal.protocol.job import Job

#: Seconds between two questions where Modal has nothing to wait for, or cannot be reached.
INTERVAL = 0.5


class RecordFolder:
    """The folder of a run on the first volume that it may write to, as far as it was committed.

    Args:
        job: The run.

    Attributes:
        volume: The volume's name; empty where the run has none to write to.
    """

    def __init__(self, job: Job) -> None:
        self.volume, self._path = "", ""
        if job.run_volume is not None:
            volume, inside = job.run_volume
            self.volume, self._path = volume.name, f"/{inside}"
        self._handle: modal.Volume | None = None

    async def read(self, name: str) -> bytes | None:
        """A file's content; None where there is none."""
        if not self.volume:
            return None
        if self._handle is None:
            self._handle = modal.Volume.from_name(self.volume)
        parts: list[bytes] = []
        while True:
            try:
                async for part in self._handle.read_file.aio(f"{self._path}/{name}"):
                    parts.append(part)
                return b"".join(parts)
            except (FileNotFoundError, modal.exception.NotFoundError):
                return None
            except TRANSIENT:
                parts.clear()
                await asyncio.sleep(INTERVAL)

    async def names(self, folder: str) -> list[str]:
        """The paths of the files below a folder.

        Raises:
            FileNotFoundError: It is not there.
        """
        if not self.volume:
            raise FileNotFoundError("no writable volume keeps this run's files")
        root = f"{self._path}/{folder}"
        try:
            found = [entry async for entry in modal.Volume.from_name(self.volume).iterdir.aio(root, recursive=True)]
        except modal.exception.NotFoundError as error:
            raise FileNotFoundError(f"the volume {self.volume} has no {root}: {words_of(error)}") from error
        files = [f"/{entry.path.lstrip('/')}" for entry in found if entry.type.name == "FILE"]
        return sorted(name.removeprefix(f"{root}/") for name in files)
