"""Creation of the mounted files in a container on Modal, from the archives that the caller has sent."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Collection, Iterable, Mapping
from typing import BinaryIO

from skyrl_modal.container.failures import Failure, StartError, describe_error
from skyrl_modal.protocol.codec import ProtocolError
from skyrl_modal.protocol.file_archive import (
    ARCHIVE_FOLDER,
    IN_FILE_OF_ITS_OWN,
    Entry,
    Frame,
    Manifest,
    decompress,
    read_manifest,
)
from skyrl_modal.protocol.state import FailureCause

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 20

#: The folders that this process has created. What is in them is from this process and from commands of the run.
_created: set[bytes] = set()


def unpack_mounts(
    archives: Mapping[str, str], volumes: Collection[str] = (), folder: str = ARCHIVE_FOLDER
) -> str | None:
    """Create the mounted files. Files of the image at other paths of a mount are kept.

    If this process has created a mounted folder before, it is emptied first: a command may have changed its files.

    Args:
        archives: For each path of a mount, the name of its archive, which is the SHA-256 of its manifest.
        volumes: Paths of volumes, which are never changed.
        folder: The folder with the archives.

    Returns:
        A message with the time that it took; None if there are no mounts.

    Raises:
        StartError: An archive is damaged, or a file cannot be created, for example because the disk is full.
    """
    begin, files = time.monotonic(), 0
    for path, name in sorted(archives.items()):
        try:
            files += _unpack_mount(os.fsencode(path), name, {os.fsencode(volume) for volume in volumes}, folder)
        except ProtocolError as error:
            remedy = "run `skyrl-modal clean` on the machine that started the run, and start it again"
            raise _failure(path, f"the archive {name} is damaged: {error}; {remedy}") from error
        except OSError as error:
            raise _failure(path, describe_error(error)) from error
    return f"unpacked {files:,} files in {time.monotonic() - begin:.2f} s" if archives else None


def _failure(path: str, reason: str) -> StartError:
    return StartError(Failure(FailureCause.FILES_NOT_UNPACKED, f"the files of {path} could not be created: {reason}"))


def _unpack_mount(path: bytes, name: str, volumes: set[bytes], folder: str) -> int:
    """Create the files of a mount; return their number."""
    with open(os.path.join(folder, name), "rb") as archive, contextlib.ExitStack() as stack:
        manifest = read_manifest(archive, name)
        pack = stack.enter_context(open(os.path.join(folder, manifest.pack), "rb")) if manifest.pack else None
        if path in _created:
            _empty_folder(path, volumes)
        elif not os.path.isdir(path) or not os.listdir(path):
            _created.add(path)
        os.makedirs(path, exist_ok=True)
        _create_entries(manifest, archive, pack, path + b"/", folder)
    return len(manifest.entries)


def _empty_folder(path: bytes, volumes: set[bytes]) -> None:
    """Remove what is in a folder, except for volumes and the folders above them."""
    with contextlib.suppress(FileNotFoundError):
        for entry in list(os.scandir(path)):
            if entry.path in volumes:
                continue
            if any(volume.startswith(entry.path + b"/") for volume in volumes) and not entry.is_symlink():
                _empty_folder(entry.path, volumes)
            else:
                _remove(entry.path)


def _remove(path: bytes) -> None:
    """Remove a file, a link or a folder."""
    if stat.S_ISDIR(os.lstat(path).st_mode):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _create_entries(manifest: Manifest, archive: BinaryIO, pack: BinaryIO | None, top: bytes, folder: str) -> None:
    """Create folders, then files, then links, so that no path leads through a link of the archive."""
    folders = {entry.path for entry in manifest.entries if stat.S_ISDIR(entry.mode)}
    for parent in {entry.path.rpartition(b"/")[0] for entry in manifest.entries}:
        path = parent
        while path and path not in folders:
            folders.add(path)
            path = path.rpartition(b"/")[0]
    for path in sorted(folders):
        _create_folder(top + path)
    by_frame: dict[int, list[Entry]] = {}
    for entry in manifest.entries:
        by_frame.setdefault(entry.frame, []).append(entry)
    writer = _FileWriter(top)
    for entry in by_frame.get(IN_FILE_OF_ITS_OWN, ()):
        writer.copy(entry, os.path.join(folder, manifest.large[entry.position]), manifest.large[entry.position])
    links: list[tuple[bytes, bytes]] = []
    for number, frame in enumerate(manifest.frames):
        if number not in by_frame:
            continue
        content = memoryview(_read_frame(frame, pack if frame.in_pack else archive))
        for entry in by_frame[number]:
            part = content[entry.position : entry.position + entry.size]
            if stat.S_ISLNK(entry.mode):
                links.append((entry.path, bytes(part)))
            else:
                writer.write(entry, (part,))
    for path, target in links:
        try:
            os.symlink(target, top + path)
        except FileExistsError:
            _remove(top + path)
            os.symlink(target, top + path)


def _read_frame(frame: Frame, file: BinaryIO | None) -> bytes:
    if file is None:
        raise ProtocolError("it names no pack")
    file.seek(frame.position)
    data = file.read(frame.stored)
    if hashlib.sha256(data).hexdigest() != frame.sha256:
        raise ProtocolError("a part of it has another SHA-256")
    content = data if frame.stored == frame.size else decompress(data, frame.size)
    if len(content) != frame.size:
        raise ProtocolError("a part of it has another size")
    return content


def _create_folder(path: bytes) -> None:
    """Create a folder. A file or link of the image at its path is replaced."""
    try:
        os.mkdir(path)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            os.unlink(path)
            os.mkdir(path)


class _FileWriter:
    """Creates files with their permissions.

    Args:
        top: What the paths begin with.
    """

    def __init__(self, top: bytes) -> None:
        self._top = top
        #: Whether a file that is created with these permissions has them, whatever the umask is.
        self._is_kept: dict[int, bool] = {}

    def write(self, entry: Entry, parts: Iterable[memoryview | bytes]) -> None:
        """Create a file from the parts of its content."""
        path, mode = self._top + entry.path, entry.mode & 0o777
        try:
            descriptor = os.open(path, _CREATE, mode)
        except FileExistsError:
            _remove(path)
            descriptor = os.open(path, _CREATE, mode)
        try:
            for part in parts:
                written = os.write(descriptor, part)
                while written < len(part):  # a file system may write less, before it reports that it is full
                    written += os.write(descriptor, part[written:])
            if mode not in self._is_kept:
                self._is_kept[mode] = os.fstat(descriptor).st_mode & 0o777 == mode
            if not self._is_kept[mode]:
                os.fchmod(descriptor, mode)
        except OSError as error:
            raise OSError(error.errno or errno.EIO, error.strerror, os.fsdecode(path)) from error
        finally:
            os.close(descriptor)

    def copy(self, entry: Entry, source: str, sha256: str) -> None:
        """Create a file from a content that is a file of its own."""
        digest, size = hashlib.sha256(), 0

        def read(file: BinaryIO) -> Iterable[bytes]:
            nonlocal size
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
                yield chunk

        with open(source, "rb") as file:
            self.write(entry, read(file))
        if (digest.hexdigest(), size) != (sha256, entry.size):
            raise ProtocolError(f"{source} has another SHA-256")
