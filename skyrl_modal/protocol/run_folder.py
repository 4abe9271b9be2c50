"""The folder with a run's records: names of its files, and how they are read and written."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from skyrl_modal.protocol.codec import ProtocolError, from_json, to_json
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.result import RunResultRecord
from skyrl_modal.protocol.status import StatusRecord

TYPE_CHECKING = False  # the same as in typing, whose import takes time

if TYPE_CHECKING:
    from pathlib import Path
    from typing import IO, Any, TypeVar

    T = TypeVar("T")

JOB_FILE = "job.json"
STATUS_FILE = "state.json"
RESULT_FILE = "result.json"
OUTPUT_FILE = "output.log"
#: The end of output.log after a line with the size of output.log, for callers that can read only whole files.
OUTPUT_END_FILE = "output.end"
#: Number of bytes of output.log in it at most.
OUTPUT_END_BYTES = 256 << 10
#: Positions in output.log, with the times at which what follows them was written.
OUTPUT_TIMES_FILE = "output.times"
#: Folder with one folder per rank, which holds its logs: those of its supervisor, of Ray, SkyRL and the machine.
LOGS_FOLDER = "logs"
SUPERVISOR_LOG = "supervisor.log"

#: The largest record that is read. The largest one written contains a command of at most 24 MiB, variables (Linux
#: limits those of a program to 2 MiB together), and the names of many included files.
MAX_RECORD_BYTES = 32 << 20

_READ_SIZE = 1 << 20
#: Flags that Windows does not have are 0.
_READ_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


class NotRegularFileError(OSError):
    """A file of a run is a symbolic link, a folder, a named pipe, a socket or a device."""


class RunFolder:
    """A run's folder on a file system that this process can reach.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path | str) -> None:
        self._folder = os.fspath(path)

    def file(self, name: str) -> str:
        """Return the path of a file in it."""
        return os.path.join(self._folder, name)

    @property
    def path(self) -> Path:
        """The folder."""
        from pathlib import Path  # imported here: a supervisor without Ray needs none of these properties

        return Path(self._folder)

    @property
    def output(self) -> Path:
        """The file with the command's output."""
        return self.path / OUTPUT_FILE

    def rank_logs(self, rank: int) -> Path:
        """Return the folder with the logs of a rank."""
        return self.path / LOGS_FOLDER / str(rank)

    def create(self) -> None:
        """Create the folder. Other users may not enter it: output and records may be confidential."""
        os.makedirs(self._folder, exist_ok=True)
        with contextlib.suppress(OSError):  # it belongs to another user, or the volume has no permissions
            os.chmod(self._folder, 0o700)

    def write_job(self, job: Job) -> None:
        """Write job.json, which no decision depends on."""
        write_record(self.file(JOB_FILE), job, is_durable=False)

    def write_status(self, status: StatusRecord) -> None:
        """Write state.json. It is of no use after a power failure, which ends the run."""
        write_record(self.file(STATUS_FILE), status, is_durable=False)

    def write_result(self, result: RunResultRecord) -> None:
        """Write result.json. On a full disk it takes the space of state.json, which is of no further use then."""
        write_record(self.file(RESULT_FILE), result, sacrifice=self.file(STATUS_FILE))

    def remove_result(self) -> None:
        """Remove result.json, so that no reader considers the run ended."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.file(RESULT_FILE))

    def read_status(self) -> StatusRecord | None:
        """Read state.json; None if there is none.

        Raises:
            ProtocolError: It cannot be read.
        """
        return read_record(StatusRecord, self.file(STATUS_FILE))

    def read_result(self) -> RunResultRecord | None:
        """Read result.json; None if there is none.

        Raises:
            ProtocolError: It cannot be read.
        """
        return read_record(RunResultRecord, self.file(RESULT_FILE))

    def write_output_end(self) -> None:
        """Write the end of output.log to a file of its own; do nothing if there is no output.log.

        Raises:
            OSError: It cannot be read or written.
        """
        try:
            file = open_regular_file(self.file(OUTPUT_FILE))
        except FileNotFoundError:
            return
        with file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - OUTPUT_END_BYTES))
            content = file.read(OUTPUT_END_BYTES)
        write_atomically(self.file(OUTPUT_END_FILE), b"%d\n" % size + content)

    def read_output(self) -> Iterator[bytes]:
        """Yield output.log in pieces; nothing if there is none.

        Raises:
            OSError: It is not a regular file, or cannot be read.
        """
        try:
            file = open_regular_file(self.file(OUTPUT_FILE))
        except FileNotFoundError:
            return
        with file:
            while chunk := file.read(_READ_SIZE):
                yield chunk


def open_regular_file(path: str | Path) -> IO[bytes]:
    """Open a file for reading that other users of a volume may have replaced.

    A symbolic link is not followed, since it may lead to any file of this machine. A named pipe would block, and a
    device may have no end.

    Raises:
        FileNotFoundError: There is no such file.
        NotRegularFileError: It is not a regular file.
        OSError: It cannot be opened for another reason.
    """
    if os.path.islink(path):  # also where the system has no O_NOFOLLOW
        raise NotRegularFileError(errno.ELOOP, "a symbolic link is not followed", os.fspath(path))
    descriptor = os.open(path, _READ_FLAGS)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotRegularFileError(errno.EINVAL, "not a regular file", os.fspath(path))
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_record(cls: type[T], path: str | Path) -> T | None:
    """Read a record from a file; None if there is no file.

    Raises:
        ProtocolError: The file is not such a record, has a newer schema, is not a regular file, is larger than
            ``MAX_RECORD_BYTES``, or cannot be read.
    """
    try:
        with open_regular_file(path) as file:
            content = file.read(MAX_RECORD_BYTES + 1)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise ProtocolError(f"{cls.__name__}: {getattr(error, 'strerror', None) or error}") from error
    if len(content) > MAX_RECORD_BYTES:
        raise ProtocolError(f"{cls.__name__}: the file is larger than {MAX_RECORD_BYTES >> 20} MiB")
    return from_json(cls, content)


def write_record(
    path: str | Path, record: Any, *, sacrifice: str | None = None, mode: int = 0o666, is_durable: bool = True
) -> None:
    """Write a record to a file in one step: a reader finds the old content or the new one, never a part.

    Args:
        path: The file.
        record: A dataclass.
        sacrifice: A file that is no longer needed, whose space is used if the disk is full.
        mode: Permissions of a new file, before the umask.
        is_durable: Whether the file has to exist after a power failure.
    """
    write_atomically(path, to_json(record).encode(), sacrifice=sacrifice, mode=mode, is_durable=is_durable)


def write_atomically(
    path: str | Path, content: bytes, *, sacrifice: str | None = None, mode: int = 0o666, is_durable: bool = True
) -> None:
    """Write a file in one step, through a temporary file beside it.

    Args:
        path: The file.
        content: Its content.
        sacrifice: A file that is no longer needed, whose space is used if the disk is full.
        mode: Permissions of a new file, before the umask.
        is_durable: Whether the file is on the disk when this function returns. Otherwise a power failure may leave an
            empty file.
    """
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}")
    try:
        try:
            # A file with this name was left by a process with the same id. A link there must not be followed.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
                _write(file, content, is_durable=is_durable)
        except OSError as error:
            if sacrifice is None or error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            os.replace(sacrifice, temporary)
            with open(temporary, "r+b") as reused:
                _write(reused, content, is_durable=is_durable)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        error.filename = str(path)  # not the temporary file; a failed write(2) has no name at all
        raise
    if is_durable:
        _sync_folder(folder or ".")


def _write(file: IO[bytes], content: bytes, *, is_durable: bool) -> None:
    file.write(content)
    file.truncate()
    file.flush()
    if is_durable:
        os.fsync(file.fileno())


def _sync_folder(folder: str) -> None:
    """Write the names of a folder's files to the disk. Some file systems cannot; the file itself is written then."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all bytes to a descriptor.

    Raises:
        OSError: The descriptor cannot be written to, for example because its reader has closed it.
    """
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
