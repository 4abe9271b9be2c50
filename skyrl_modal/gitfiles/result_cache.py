"""Results that can be computed again, stored in a folder of the user's cache.

A result is stored under a name, which states everything that the result depends on, or begins with a digest of it. A
file that is absent, damaged, not readable or of another name is a miss. Problems of the cache only cost time.

A result may depend on the status of a file instead of its content. Times have a resolution, so a file that has changed
recently may change again without a new status: see ``has_settled``.
"""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path

from skyrl_modal.gitfiles.files import read_regular_file

#: Size of one result. The largest are the index of git and the list of the files without keys.
MAX_RESULT_BYTES = 64 << 20
#: The number and the size of all results, above which the oldest are removed.
MAX_RESULTS = 256
MAX_TOTAL_BYTES = 512 << 20
#: More than the resolution of the times of any file system, and than the usual difference of two machines' clocks.
SETTLING_NS = 2_500_000_000
_DIGEST_BYTES = 32
_UNFINISHED_PREFIX = ".new-"


class ResultCache:
    """A folder of results. Several processes and threads can use it at the same time.

    Args:
        folder: The folder, which need not exist; None to store nothing. Without a home folder, the user's cache folder
            is a relative path that begins with ``~``: nothing is stored either.

    Example:
        >>> ResultCache(None).load("a name") is None
        True

    Attributes:
        folder: As given.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @property
    def is_enabled(self) -> bool:
        """Whether results are stored."""
        return self.folder is not None and self.folder.is_absolute()

    def load(self, name: str) -> bytes | None:
        """Return the result that is stored under a name; None if there is none."""
        if self.folder is None or not self.is_enabled:
            return None
        try:
            data = read_regular_file(
                self.folder / _file_name(name), follow_link=False, max_bytes=MAX_RESULT_BYTES + _DIGEST_BYTES
            )
        except OSError:
            return None
        content = data[_DIGEST_BYTES:]
        return content if data[:_DIGEST_BYTES] == _digest(name, content) else None

    def save(self, name: str, content: bytes) -> None:
        """Store a result in one step, and remove old ones above the limits."""
        if self.folder is None or not self.is_enabled or len(content) > MAX_RESULT_BYTES:
            return
        with suppress(OSError):
            handle, staged = self.create_file()
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(_digest(name, content))
                    file.write(content)
                os.replace(staged, self.folder / _file_name(name))
            except OSError:
                Path(staged).unlink(missing_ok=True)
                raise
            _remove_oldest(self.folder)

    def create_file(self) -> tuple[int, str]:
        """Create a file in the folder for temporary use, which the caller removes; return its descriptor and path.

        Raises:
            OSError: The file cannot be created.
        """
        folder = os.fspath(self.folder or "")
        # tempfile is not used, since its import takes time.
        path, flags = os.path.join(folder, _UNFINISHED_PREFIX + os.urandom(8).hex()), os.O_RDWR | os.O_CREAT | os.O_EXCL
        try:
            return os.open(path, flags, 0o600), path
        except FileNotFoundError:
            for parent in (os.path.dirname(folder), folder):  # of the user, whatever the umask
                os.makedirs(parent, mode=0o700, exist_ok=True)
        return os.open(path, flags, 0o600), path


#: Stores nothing.
NO_CACHE = ResultCache(None)


def has_settled(status: os.stat_result, now_ns: int) -> bool:
    """Return whether a further change of a file would also change its status.

    Args:
        status: The status of the file, read before its content.
        now_ns: The time in nanoseconds since the epoch, read before the content of the file.
    """
    before = latest_settled_time(now_ns)
    return status.st_mtime_ns < before and status.st_ctime_ns < before


def latest_settled_time(now_ns: int) -> int:
    """Return the time before which a file must have changed, so that a further change also changes its status."""
    return now_ns - SETTLING_NS


def _file_name(name: str) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()


def _digest(name: str, content: bytes) -> bytes:
    digest = hashlib.sha256(b"skyrl-modal result 1\0" + os.fsencode(name) + b"\0")
    digest.update(content)
    return digest.digest()


def _remove_oldest(folder: Path) -> None:
    """Remove the oldest files until the folder is within its limits, which includes those of killed processes."""
    files = []
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # another process has removed it
                status = entry.stat(follow_symlinks=False)
                files.append((status.st_mtime_ns, status.st_size, entry.path))
    files.sort()
    total, number = sum(size for _, size, _ in files), len(files)
    an_hour_ago = time.time_ns() - 3_600_000_000_000
    for changed, size, path in files:
        is_abandoned = os.path.basename(path).startswith(_UNFINISHED_PREFIX) and changed < an_hour_ago
        if number > MAX_RESULTS or total > MAX_TOTAL_BYTES or is_abandoned:
            with suppress(OSError):
                os.unlink(path)
            number, total = number - 1, total - size
