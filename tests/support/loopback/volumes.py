"""Volumes: the committed files, and a working copy of them in each container.

Assumptions about Modal: a container sees the volume as it was committed when the container started. Other containers
see its changes after its commit and their reload. A commit publishes the files that changed since the last
synchronization; if several containers change a file, the last commit wins. A reload may commit first, and fails while a
file of the volume is open or a process has its working directory there. The mount path is a symlink into
/__modal/volumes. Read-only mounts and sub-paths are supported.

Modal also commits in the background every few seconds. The loopback does so only if `background_commits` is set, so
that tests detect a missing commit.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from pathlib import Path

import attrs
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from . import texts
from .records import Container, new_id

Fingerprint = tuple[int, int, int, int]  # mode, size, mtime, inode


@attrs.define(eq=False)
class Volume:
    """A volume with its committed files."""

    name: str
    environment: str
    version: int
    folder: Path
    id: str = attrs.field(factory=lambda: new_id("vo"))
    commits: int = 0
    fail_commits: int = 0
    committing: int = 0
    most_commits_together: int = 0

    @property
    def data(self) -> Path:
        """The committed files."""
        return self.folder / self.id

    def metadata(self) -> api_pb2.VolumeMetadata:
        return api_pb2.VolumeMetadata(version=self.version, name=self.name)  # type: ignore[arg-type]  # protobuf keeps enums as numbers


def scan(folder: Path) -> dict[str, Fingerprint]:
    """Return every path below a folder with a fingerprint that differs if the file has changed."""
    found: dict[str, Fingerprint] = {}
    for where, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(where, name)
            with contextlib.suppress(FileNotFoundError):
                stat = path.lstat()
                changing = not path.is_dir() or path.is_symlink()
                key = str(path.relative_to(folder))
                found[key] = (stat.st_mode, *((stat.st_size, stat.st_mtime_ns, stat.st_ino) if changing else (0, 0, 0)))
    return found


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _remove(path: Path) -> None:
    if _is_folder(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def copy_entry(source: Path, target: Path) -> None:
    """Copy one file, folder or link, replacing an existing one atomically."""
    if _is_folder(source):
        if not _is_folder(target):
            _remove(target)
            target.mkdir(parents=True)
        shutil.copystat(source, target)
        return
    if _is_folder(target):
        _remove(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.parent / f".{new_id('part')}"
    try:
        shutil.copy2(source, part, follow_symlinks=False)
    except FileNotFoundError:
        return  # removed by the container in the meantime
    part.replace(target)


def mirror(source: Path, target: Path) -> None:
    """Make the contents of the target folder equal to those of the source folder."""
    wanted, present = scan(source), scan(target)
    for name in sorted(set(present) - set(wanted), reverse=True):
        _remove(target / name)
    for name in sorted(wanted):
        have = present.get(name)
        if have is None or have[:3] != wanted[name][:3]:
            copy_entry(source / name, target / name)


@attrs.define(eq=False)
class WorkingCopy:
    """The copy of a volume in one container."""

    volume: Volume
    folder: Path
    mount: api_pb2.VolumeMount
    base: dict[str, Fingerprint] = attrs.field(factory=dict)
    lock: threading.Lock = attrs.field(factory=threading.Lock)
    closed: bool = False
    failed_at: float | None = None  # time of the failure of a commit that has to be repeated

    def close(self) -> None:
        """Refuse further commits: the files are about to be removed, which is not a change of the volume."""
        with self.lock:
            self.closed = True

    def fetch(self, pause: float = 0.0) -> None:
        """Update the copy to the committed files. It looks empty for `pause` seconds. Runs in a thread."""
        source = self.volume.data / self.mount.sub_path.strip("/")
        source.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        if pause:
            self._look_empty(pause)
        mirror(source, self.folder)
        self.base = scan(self.folder)

    def _look_empty(self, pause: float) -> None:
        """Let the volume look empty for some seconds, as while Modal reloads it."""
        aside = self.folder.with_name(f"{self.folder.name}-{new_id('aside')}")
        aside.mkdir()
        try:
            for path in list(self.folder.iterdir()):
                path.rename(aside / path.name)
            time.sleep(pause)
        finally:
            for path in list(aside.iterdir()):
                path.rename(self.folder / path.name)
            aside.rmdir()

    def fail_once(self) -> None:
        """Raise the error of a commit that has to be repeated a second later."""
        now = time.monotonic()
        if self.failed_at is not None and 1.0 <= now - self.failed_at < 30.0:
            self.failed_at = None
            return
        if self.failed_at is None or now - self.failed_at >= 30.0:
            self.failed_at = now
        raise GRPCError(Status.DATA_LOSS, texts.COMMIT_FAILED)

    def publish(self) -> int:
        """Commit the changes since the last synchronization. Return the number of changed paths. Runs in a thread."""
        with self.lock:
            return 0 if self.closed or self.mount.read_only else self._publish()

    def _publish(self) -> int:
        if self.volume.fail_commits > 0:
            self.volume.fail_commits -= 1
            raise GRPCError(Status.DATA_LOSS, texts.COMMIT_FAILED)
        target = self.volume.data / self.mount.sub_path.strip("/")
        now = scan(self.folder)
        removed = sorted(set(self.base) - set(now), reverse=True)
        changed = sorted(name for name, mark in now.items() if self.base.get(name) != mark)
        for name in removed:
            _remove(target / name)
        for name in changed:
            copy_entry(self.folder / name, target / name)
        self.base = now
        self.volume.commits += 1
        return len(removed) + len(changed)

    def open_file(self, pids: list[int]) -> str | None:
        """Return a path in the copy that is open in, or the working directory of, one of these processes."""
        marks = {(stat.st_dev, stat.st_ino): "" for stat in [self.folder.stat()]}
        for where, folders, files in os.walk(self.folder):
            for name in [*folders, *files]:
                with contextlib.suppress(FileNotFoundError):
                    stat = os.lstat(Path(where, name))
                    marks[stat.st_dev, stat.st_ino] = str(Path(where, name).relative_to(self.folder))
        for pid in pids:
            proc = Path("/proc", str(pid))
            with contextlib.suppress(OSError):
                for link in [proc / "cwd", *(proc / "fd").iterdir()]:
                    with contextlib.suppress(OSError):
                        stat = link.stat()
                        if (stat.st_dev, stat.st_ino) in marks:
                            return marks[stat.st_dev, stat.st_ino] or "."
        return None


def working_copies(container: Container) -> dict[str, WorkingCopy]:
    """Return the working copies of a container by volume id; empty before it has started."""
    return container.process.volumes if container.process else {}
