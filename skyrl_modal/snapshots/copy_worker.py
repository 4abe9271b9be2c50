"""A program that copies many small files into a pool of contents, and links them into a new tree.

``bulk_copy`` starts it in several processes. It imports the standard library only, and few modules of it. What is
unusual is left to the caller: links, large files, files that change, and every error.

Standard input is a file with the task: a line with a JSON object, then the paths with a NUL between them. The numbers
of the parts to copy are read from a pipe that all processes share, so that none is idle while another one has parts
left. The results are written to standard output at the end.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
import struct
import sys

TYPE_CHECKING = False  # the same as in typing, whose import takes time

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

#: A result: the position of the path in the task, whether the file is in the tree, its size, and the number of bytes by
#: which the pool grew; then its stamp (size, both times, inode, mode) and the SHA-256 of its content.
RESULT = struct.Struct("=I?QQqqqQq32s")
#: The number of a part. The pipe contains a multiple of this size, so that a read returns one number.
NUMBER = struct.Struct("<I")
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class _Copier:
    """Copies files, one folder after the other.

    Args:
        task: The task: ``root``, ``pool`` and ``tree`` are folders; the tree may be None. Files above ``small`` bytes
            are left to the caller. Stamps of files that changed at the time ``trusted`` or later never match.
    """

    def __init__(self, task: dict[str, Any]) -> None:
        self._root, self._tree = task["root"], task["tree"]
        self._small, self._trusted = task["small"], task["trusted"]
        self._pool = [os.open(f"{task['pool']}/{digit}", _FOLDER) for digit in "0123456789abcdef"]
        self._folder: str | None = None
        self._source = self._target = -1
        # Whether new files get the permissions with which they are created. Access lists of the folder can change them.
        self._exact_modes: dict[int, bool] = {}

    def enter(self, folder: str) -> None:
        """Open a folder of the files, and create it in the tree."""
        if folder == self._folder:
            return
        self._close_folder()
        self._source = os.open(f"{self._root}/{folder}", _FOLDER)
        if self._tree is not None:
            path = f"{self._tree}/{folder}"
            os.makedirs(path, exist_ok=True)
            self._target = os.open(path, _FOLDER)
        self._folder = folder

    def _close_folder(self) -> None:
        for descriptor in (self._source, self._target):
            if descriptor >= 0:
                os.close(descriptor)
        self._source = self._target = -1
        self._folder = None

    def copy(self, name: str) -> tuple[object, ...] | None:
        """Copy a file of the folder that was entered. Return its result; None if it is left to the caller."""
        source = os.open(name, _OPEN, dir_fd=self._source)
        try:
            status = os.fstat(source)
            size, mode = status.st_size, status.st_mode
            if size > self._small or not stat.S_ISREG(mode):
                return None
            data = os.read(source, size + 1)
            after = os.fstat(source)
        finally:
            os.close(source)
        modified, changed = status.st_mtime_ns, status.st_ctime_ns
        if len(data) != size or (modified, changed) != (after.st_mtime_ns, after.st_ctime_ns) or after.st_size != size:
            return None
        sha = hashlib.sha256(data)
        digits = sha.hexdigest()
        pool, stored = self._pool[int(digits[0], 16)], f"{digits[1:]}-{mode & 0o777:o}"
        added = size
        try:
            self._create(pool, stored, data, status)
        except FileExistsError:
            if os.stat(stored, dir_fd=pool, follow_symlinks=False).st_size != size:
                return None
            added = 0
        if linked := self._target >= 0:
            try:
                os.link(stored, name, src_dir_fd=pool, dst_dir_fd=self._target, follow_symlinks=False)
            except OSError:
                linked = False
        stamped = -1 if modified >= self._trusted or changed >= self._trusted else size
        inode = status.st_ino & 0xFFFFFFFFFFFFFFFF
        return linked, size, added, stamped, modified, changed, inode, mode, sha.digest()

    def _create(self, pool: int, name: str, data: bytes, status: os.stat_result) -> None:
        """Write a content, which has its permissions before it has its size: see ``ContentPool``."""
        mode = status.st_mode & 0o777
        descriptor = os.open(name, _CREATE, mode, dir_fd=pool)
        try:
            is_exact = self._exact_modes.get(mode)
            if is_exact is None:
                is_exact = self._exact_modes[mode] = os.fstat(descriptor).st_mode & 0o777 == mode
            if not is_exact:
                os.fchmod(descriptor, mode)
            if data and os.write(descriptor, data) != len(data):
                raise OSError("the content was not written in full")
            os.utime(descriptor, ns=(status.st_atime_ns, status.st_mtime_ns))
        except BaseException:
            os.unlink(name, dir_fd=pool)
            raise
        finally:
            os.close(descriptor)


def main() -> None:
    """Copy the parts whose numbers are in the pipe."""
    os.umask(0)
    line, _, names = sys.stdin.buffer.read().partition(b"\n")
    task = json.loads(line)
    for name in ("root", "pool", "lock", "tree"):
        if task[name] is not None:
            task[name] = os.fsdecode(task[name].encode("latin-1"))
    # The lock of the store is held until this process has ended, also if its caller was killed. While the caller lives,
    # it holds the same lock, so this does not wait.
    with open(task["lock"], "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        sys.stdout.buffer.write(b"".join(_copy_parts(task, os.fsdecode(names).split("\0"))))
        sys.stdout.buffer.flush()


def _copy_parts(task: dict[str, Any], paths: list[str]) -> Iterator[bytes]:
    """Copy parts until none is left or the caller has ended, and yield their results."""
    size, queue, caller = task["part"], task["queue"], task["caller"]
    copier = _Copier(task)
    while (data := os.read(queue, NUMBER.size)) and os.getppid() == caller:
        begin = NUMBER.unpack(data)[0] * size
        for position, path in enumerate(paths[begin : begin + size], begin):
            folder, _, name = path.rpartition("/")
            try:
                copier.enter(folder)
                result = copier.copy(name)
            except OSError:
                continue
            if result is not None:
                yield RESULT.pack(position, *result)


if __name__ == "__main__":
    main()
