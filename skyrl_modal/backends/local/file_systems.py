"""File systems of this machine: which folders are local, and where sockets can be created."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from skyrl_modal.dataclass import dataclass

#: Types of file systems (proc_pid_mountinfo(5)) whose files are on another machine, or are served by another program.
#: Ray on them is slow, several machines may use the same folder, and some have neither sockets nor overlays.
NETWORK_TYPES = frozenset(
    {"9p", "acfs", "afs", "beegfs", "ceph", "cifs", "coda", "fhgfs", "fuse", "fuseblk", "gfs2", "glusterfs", "gpfs",
     "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "panfs", "pvfs2", "smb3", "smbfs", "virtiofs", "wekafs"}
)  # fmt: skip
#: The files of a container of an ordinary user, such as podman's, which are on a disk of this machine.
_CONTAINER_TYPE = "fuse.fuse-overlayfs"
#: Types whose files are in memory.
MEMORY_TYPES = frozenset({"tmpfs", "ramfs", "devtmpfs"})
#: Bytes of the longest path of a socket (unix(7): sun_path has 108, with a null byte; macOS has 104).
MAX_SOCKET_PATH = 107 if sys.platform == "linux" else 103
#: The file with the mounts of this process. It exists on Linux only.
_MOUNTS = "/proc/self/mountinfo"
_ESCAPE = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class FileSystem:
    """The file system of a folder.

    Attributes:
        type: Its type, such as ``"ext4"`` or ``"nfs4"``; empty if it is not known.
    """

    type: str

    @property
    def is_network(self) -> bool:
        """Whether its files are on another machine, or are served by another program."""
        return self.type in NETWORK_TYPES or (self.type.startswith("fuse.") and self.type != _CONTAINER_TYPE)

    @property
    def is_memory(self) -> bool:
        """Whether its files are in memory."""
        return self.type in MEMORY_TYPES


def file_system_of(folder: Path) -> FileSystem:
    """Return the file system of a folder, which does not have to exist yet.

    Outside of Linux its type is not known.
    """
    try:
        with open(_MOUNTS, "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return FileSystem("")
    path = os.fsencode(os.path.realpath(folder))
    found, length = b"", 0
    for line in lines:
        fields, _, more = line.partition(b" - ")
        mount_point = _ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), fields.split(b" ")[4])
        prefix = mount_point.rstrip(b"/") + b"/"
        # The last of several mounts at one path hides the others.
        if (path + b"/").startswith(prefix) and len(prefix) >= length:
            found, length = more.split(b" ")[0], len(prefix)
    return FileSystem(found.decode("ascii", "replace"))


def local_disk_folders() -> Iterator[Path]:
    """Yield the existing folders for temporary files that are on a disk of this machine."""
    import tempfile  # imported here, since it takes time

    for name in dict.fromkeys([tempfile.gettempdir(), "/tmp", "/var/tmp"]):
        file_system = file_system_of(Path(name))
        if os.path.isdir(name) and not file_system.is_network and not file_system.is_memory:
            yield Path(name)


def short_folders() -> Iterator[Path]:
    """Yield the existing folders for temporary files whose paths are short.

    The last ones are removed when the user logs out.
    """
    for name in ("/tmp", "/var/tmp", os.environ.get("XDG_RUNTIME_DIR", ""), "/dev/shm"):
        if os.path.isabs(name) and os.path.isdir(name):
            yield Path(name)


def socket_error(folder: Path) -> str | None:
    """Return why no socket can be created in a folder of this user; None if one was created."""
    name = f"socket-{os.getpid()}-{threading.get_ident()}"
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        return str(error.strerror)
    try:
        # Through the descriptor, since the path of the folder may be too long for a socket of another length.
        path = f"/proc/self/fd/{descriptor}/{name}" if os.path.isdir("/proc/self/fd") else str(folder / name)
        with socket.socket(socket.AF_UNIX) as probe:
            probe.bind(path)
    except (OSError, UnicodeError) as error:
        return getattr(error, "strerror", None) or str(error)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=descriptor)
        os.close(descriptor)
    return None


def make_own_folder(folder: Path) -> bool:
    """Create a folder in a place where other users can create some too.

    Returns:
        Whether it is a folder that belongs to this user, and that no other user may enter.
    """
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
