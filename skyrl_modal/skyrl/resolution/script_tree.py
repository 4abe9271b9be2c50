"""A folder with the files of a selection, as scripts see them: the content of small texts, and the sizes of all others.

A hard link would change the time of the user's file, and a copy of all files takes as long as a snapshot.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from attrs import frozen

from skyrl_modal.gitfiles.files import read_regular_file

#: Files of a tree, and size of a file whose content is copied.
MAX_FILES = 20_000
MAX_TEXT_BYTES = 256 * 1024
#: Files that scripts read: scripts, and small files of configuration.
_TEXT_ENDINGS = (".sh", ".bash", ".env", ".txt", ".json", ".yaml", ".yml", ".toml", ".cfg", ".ini", ".conf", ".list")


@frozen
class MountedFiles:
    """The files of one mount.

    Attributes:
        root: The local folder.
        remote_path: Its path in the container.
        files: The paths below it.
    """

    root: Path
    remote_path: str
    files: Sequence[str]


def create_tree(mount: MountedFiles, folder: Path) -> None:
    """Create the files of a mount in an empty folder.

    Files that cannot be read are left out. Of a mount with more files than ``MAX_FILES``, the scripts come first.

    Raises:
        OSError: A file cannot be created.
    """
    made: set[str] = set()
    for name in _chosen_files(mount.files):
        parent = os.path.dirname(name)
        if parent not in made:
            os.makedirs(folder / parent, exist_ok=True)
            made.add(parent)
        _create_file(str(mount.root / name), str(folder / name), name)


def _chosen_files(files: Sequence[str]) -> Sequence[str]:
    if len(files) <= MAX_FILES:
        return files
    return sorted(files, key=lambda name: not is_text(name))[:MAX_FILES]


def is_text(name: str) -> bool:
    """Return whether scripts may read the content of a file, by its name."""
    base = name.rpartition("/")[2]
    return base.endswith(_TEXT_ENDINGS) or "." not in base.lstrip(".") or base.startswith(".env")


def _create_file(source: str, target: str, name: str) -> None:
    content = b""
    try:
        status = os.lstat(source)
        link = os.readlink(source) if stat.S_ISLNK(status.st_mode) else None
        has_content = link is None and is_text(name) and status.st_size <= MAX_TEXT_BYTES
        if has_content:
            content = read_regular_file(source, follow_link=False, max_bytes=MAX_TEXT_BYTES)
    except OSError:
        return  # it was removed, or is unreadable
    if link is not None:
        os.symlink(link, target)
        return
    mode = stat.S_IMODE(status.st_mode) | stat.S_IRUSR
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        if has_content:
            os.write(descriptor, content)
        elif status.st_size:
            os.ftruncate(descriptor, status.st_size)
    finally:
        os.close(descriptor)


def tree_key(mounts: Sequence[MountedFiles]) -> bytes:
    """Return a digest of what ``create_tree`` creates: the contents of texts, and the names and sizes of others."""
    digest = hashlib.sha256()
    for mount in mounts:
        digest.update(f"{mount.remote_path}\0{len(mount.files)}\0".encode("utf-8", "surrogateescape"))
        for name in _chosen_files(mount.files):
            digest.update(_file_key(f"{mount.root}/{name}", name))
    return digest.digest()


def _file_key(path: str, name: str) -> bytes:
    key = name.encode("utf-8", "surrogateescape")
    try:
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            return b"%b\0l%b\0" % (key, os.fsencode(os.readlink(path)))
        text = b""
        if is_text(name) and status.st_size <= MAX_TEXT_BYTES:
            text = hashlib.sha256(read_regular_file(path, follow_link=False, max_bytes=MAX_TEXT_BYTES)).digest()
        return b"%b\0%o %d %b\0" % (key, status.st_mode, status.st_size, text)
    except OSError:
        return key + b"\0absent\0"
