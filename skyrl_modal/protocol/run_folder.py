"""The folder with a run's records: names of its files, and how they are read and written."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from skyrl_modal.protocol.codec import from_json, to_json
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.result import RunResultRecord
from skyrl_modal.protocol.status import StatusRecord

T = TypeVar("T")

JOB_FILE = "job.json"
STATUS_FILE = "state.json"
RESULT_FILE = "result.json"
OUTPUT_FILE = "output.log"
#: Folder with one folder per rank, which holds the logs of its supervisor and of its Ray.
RAY_FOLDER = "ray"
SUPERVISOR_LOG = "supervisor.log"
RAY_START_LOG = "start.log"

_READ_SIZE = 1 << 20


class RunFolder:
    """A run's folder on a file system that this process can reach.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def output(self) -> Path:
        """The file with the command's output."""
        return self.path / OUTPUT_FILE

    @property
    def ray_logs(self) -> Path:
        """The folder with a folder of logs for each rank."""
        return self.path / RAY_FOLDER

    def rank_logs(self, rank: int) -> Path:
        """Return the folder with the logs of a rank."""
        return self.ray_logs / str(rank)

    def write_job(self, job: Job) -> None:
        """Write job.json."""
        write_record(self.path / JOB_FILE, job)

    def write_status(self, status: StatusRecord) -> None:
        """Write state.json."""
        write_record(self.path / STATUS_FILE, status)

    def write_result(self, result: RunResultRecord) -> None:
        """Write result.json. On a full disk it takes the space of state.json, which is of no further use then."""
        write_record(self.path / RESULT_FILE, result, sacrifice=self.path / STATUS_FILE)

    def remove_result(self) -> None:
        """Remove result.json, so that no reader considers the run ended."""
        (self.path / RESULT_FILE).unlink(missing_ok=True)

    def read_status(self) -> StatusRecord | None:
        """Read state.json; None if there is none.

        Raises:
            ProtocolError: It cannot be read.
        """
        return read_record(StatusRecord, self.path / STATUS_FILE)

    def read_result(self) -> RunResultRecord | None:
        """Read result.json; None if there is none.

        Raises:
            ProtocolError: It cannot be read.
        """
        return read_record(RunResultRecord, self.path / RESULT_FILE)

    def read_output(self) -> Iterator[bytes]:
        """Yield output.log in pieces; nothing if there is none."""
        try:
            file = self.output.open("rb")
        except FileNotFoundError:
            return
        with file:
            while chunk := file.read(_READ_SIZE):
                yield chunk


def read_record(cls: type[T], path: Path) -> T | None:
    """Read a record from a file; None if there is no file.

    Raises:
        ProtocolError: The file is not such a record, or has a newer schema.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    return from_json(cls, content)


def write_record(path: Path, record: Any, *, sacrifice: Path | None = None, mode: int = 0o666) -> None:
    """Write a record to a file in one step: a reader finds the old content or the new one, never a part.

    Args:
        path: The file.
        record: A dataclass.
        sacrifice: A file that is no longer needed, whose space is used if the disk is full.
        mode: Permissions of a new file, before the umask.
    """
    write_atomically(path, to_json(record).encode(), sacrifice=sacrifice, mode=mode)


def write_atomically(path: Path, content: bytes, *, sacrifice: Path | None = None, mode: int = 0o666) -> None:
    """Write a file in one step, through a temporary file beside it.

    Args:
        path: The file.
        content: Its content.
        sacrifice: A file that is no longer needed, whose space is used if the disk is full.
        mode: Permissions of a new file, before the umask.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
                file.write(content)
        except OSError as error:
            if sacrifice is None or error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            sacrifice.replace(temporary)
            with temporary.open("r+b") as reused:
                reused.write(content)
                reused.truncate()
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def write_all(descriptor: int, data: bytes) -> None:
    """Write all bytes to a descriptor.

    Raises:
        OSError: The descriptor cannot be written to, for example because its reader has closed it.
    """
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
