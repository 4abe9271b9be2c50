"""The files that are followed: the logs of Ray and of SkyRL. Other processes create them, so nothing is trusted.

Symbolic links are not followed, named pipes, sockets and devices are not opened, and the search is bounded.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from skyrl_modal.container.process_tree import descendants
from skyrl_modal.dataclass import dataclass
from skyrl_modal.protocol.kept_logs import RAY_LOGS, is_skyrl_log_folder, is_state_file

_MAX_SKYRL_FOLDERS = 8
#: Number of entries that one search looks at, and depth of the folders.
MAX_ENTRIES, MAX_DEPTH = 5000, 6
#: Characters of one part of a kept log's path.
_MAX_NAME = 100
_UNSAFE = re.compile(r"[^A-Za-z0-9._+=@,-]")
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

#: What identifies a file whatever its name: its device and its inode.
FileId = tuple[int, int]


@dataclass(frozen=True, slots=True)
class LogFolder:
    """A folder with logs.

    Attributes:
        base: A folder of the system or of the launcher, which may be a link.
        parts: The path from there. No part of it may be a link.
        name: The folder in which its logs are kept.
        only_opened: Whether only files count that a process of this run has opened, since other runs use it too.
    """

    base: str
    parts: tuple[str, ...]
    name: str
    only_opened: bool = False


@dataclass(slots=True)
class FoundLog:
    """A file that was found. It can be opened until the search continues.

    Attributes:
        name: The path in the folder of kept logs, which contains no special characters.
        id: Its device and inode.
        size: Its size in bytes.
    """

    name: str
    id: FileId
    size: int
    _entry: str
    _folder: int

    def open(self) -> int:
        """Return a descriptor for reading. The file may have been replaced: ``os.fstat`` shows what it is.

        Raises:
            OSError: It cannot be opened, or is a link by now.
        """
        return os.open(self._entry, _FILE_FLAGS, dir_fd=self._folder)


class LogSearch:
    """Finds the logs of one rank, repeatedly.

    Args:
        session: Ray's temporary folder.
        tmp: Folders in which SkyRL's folders of logs are.
        shared_tmp: Those of them that other runs use too.

    Attributes:
        is_complete: Whether the last search looked at all entries.
    """

    def __init__(self, session: Path, tmp: Iterable[str], shared_tmp: Iterable[str] = ()) -> None:
        # The local backend may have made a link of it, before the command has started.
        is_link = os.path.islink(session)
        self._session = (str(session), ()) if is_link else (str(session.parent), (session.name,))
        self._tmp = list(dict.fromkeys(tmp))
        self._shared_tmp = set(shared_tmp)
        self._opened: set[FileId] = set()
        self._present: set[FileId] = set()
        self._entries = 0
        self.is_complete = True

    def find(self) -> Iterator[FoundLog]:
        """Yield the files that are there now."""
        self._entries = 0
        self.is_complete = True
        self._present = set()
        for folder in self.folders():
            if folder.only_opened:
                self._opened |= _opened_files("/".join((folder.base.rstrip("/"), *folder.parts)))
            with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
                descriptor = os.open(folder.base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                stack.callback(os.close, descriptor)
                for part in folder.parts:
                    descriptor = os.open(part, _FOLDER_FLAGS, dir_fd=descriptor)
                    stack.callback(os.close, descriptor)
                yield from self._walk(descriptor, folder.name, folder.only_opened, MAX_DEPTH)
        if self.is_complete:
            self._opened &= self._present  # another file may have the inode of one that was removed

    def folders(self) -> list[LogFolder]:
        """Return the folders with logs that exist now."""
        base, parts = self._session
        found = []
        with contextlib.suppress(OSError):
            # Ray's link has an absolute target (Ray 2.48 to 2.60), which is a folder beside it.
            latest = os.path.basename(os.readlink(os.path.join(base, *parts, "session_latest")))
            found.append(LogFolder(base, (*parts, latest, "logs"), RAY_LOGS))
        for tmp in self._tmp:
            with contextlib.suppress(OSError):
                names = sorted(name for name in os.listdir(tmp) if is_skyrl_log_folder(name))
                found += [
                    LogFolder(tmp, (name,), safe_name(name), tmp in self._shared_tmp)
                    for name in names[:_MAX_SKYRL_FOLDERS]
                ]
        return found

    def _walk(self, folder: int, path: str, only_opened: bool, depth: int) -> Iterator[FoundLog]:
        with os.scandir(folder) as entries:
            for entry in entries:
                self._entries += 1
                if self._entries > MAX_ENTRIES:
                    self.is_complete = False
                    return
                name = f"{path}/{safe_name(entry.name)}"
                with contextlib.suppress(OSError):  # it was removed meanwhile, or may not be read
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode) and depth > 1:
                        descriptor = os.open(entry.name, _FOLDER_FLAGS, dir_fd=folder)
                        try:
                            yield from self._walk(descriptor, name, only_opened, depth - 1)
                        finally:
                            os.close(descriptor)
                    elif stat.S_ISREG(status.st_mode) and not (path == RAY_LOGS and is_state_file(entry.name)):
                        file_id = (status.st_dev, status.st_ino)
                        self._present.add(file_id)
                        if not only_opened or file_id in self._opened:
                            yield FoundLog(name, file_id, status.st_size, entry.name, folder)


def safe_name(name: str) -> str:
    """Return a name of a file without special characters. Different names remain different.

    Example:
        >>> safe_name("worker-1.err"), safe_name("a b")
        ('worker-1.err', 'a_b~806c5cd3')
    """
    cleaned = _UNSAFE.sub("_", name)[:_MAX_NAME]
    if cleaned == name and not name.startswith("."):
        return name
    return f"{cleaned.lstrip('.')}~{zlib.crc32(os.fsencode(name)):08x}"


def _opened_files(folder: str) -> set[FileId]:
    """Return the files below a folder that the processes of this run have open; none on a system without /proc."""
    found = set()
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError):  # it has exited, or belongs to another user
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    path = f"/proc/{pid}/fd/{name}"
                    if os.readlink(path).startswith(f"{folder}/"):
                        status = os.stat(path)
                        found.add((status.st_dev, status.st_ino))
    return found
