"""How a snapshot is taken: what changed is read, the tree is built on an earlier one, and published in one step."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from skyrl_modal.errors import SpecError
from skyrl_modal.gitfiles.selection import Selection
from skyrl_modal.snapshots.content_pool import LINK, Blobs, Unusable, digest_of, kept_mode
from skyrl_modal.snapshots.file_stamps import Stamp, Stamps, stamp_of, untrusted, youngest_trusted
from skyrl_modal.snapshots.snapshot import Lease, Snapshot

Progress = Callable[[int, int], None]
"""Called with the number of files that were read and of those that have to be."""

_Entries = dict[str, tuple[int, bytes]]


class Taking:
    """One attempt to take a snapshot.

    Attributes:
        added: The bytes by which the pool grew.
        built: Whether there is a new tree.
    """

    def __init__(self, store: Path, selection: Selection, progress: Progress | None) -> None:
        self._blobs, self._trees = Blobs(store / "blobs"), store / "trees"
        self._selection, self._progress = selection, progress
        root = os.fsencode(selection.root)
        self._stamps_path = store / "stamps" / hashlib.sha256(root).hexdigest()
        self._prefix = os.fspath(selection.root) + "/"
        self._warnings: list[str] = []
        self._bytes = 0
        self.added = 0
        self.built = False

    def run(self) -> Snapshot | None:
        """The snapshot, or None where the files changed so that the attempt has to be made again."""
        known = Stamps.load(self._stamps_path)
        read = self._read(known)
        if read is known.entries:
            digest = known.digest.hex()
        else:
            digest = digest_of((path, kept_mode(stamp[4]), sha) for path, (stamp, sha) in read.items())
        path = self._trees / digest
        lease = self._leased(path)
        if lease is None:
            staged, base = self._borrowed(known.digest.hex(), _entries(known.entries))
            try:
                self._fill(staged, base, _entries(read))
            except _Outdated:
                shutil.rmtree(staged)
                return None
            lease = self._published(staged, path)
            self.built = True
        else:
            os.utime(path)
        if read is not known.entries:
            Stamps(bytes.fromhex(digest), read).save(self._stamps_path)
        return Snapshot(path, digest, len(read), self._bytes, tuple(self._warnings), lease=lease)

    def _read(self, known: Stamps) -> dict[str, tuple[Stamp, bytes]]:
        """The stamps and contents of the selected files as they are; the known ones themselves if nothing changed."""
        stamps: dict[str, tuple[Stamp, bytes] | None] = {}
        waiting: list[str] = []
        old = known.entries
        prefix, lstat = self._prefix, os.lstat
        if not os.path.isdir(prefix):
            raise SpecError("root", str(self._selection.root), "is gone since it was selected")
        for path in self._selection.files:
            try:
                status = lstat(prefix + path)
            except OSError as error:
                gone = isinstance(error, (FileNotFoundError, NotADirectoryError))
                self._warnings.append(f"{path} {'is gone' if gone else error.strerror}: it is not in the snapshot")
                continue
            stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_mode)
            self._bytes += status.st_size
            before = old.get(path)
            stamps[path] = before
            if before is None or before[0] != stamp:
                waiting.append(path)
        if waiting:
            self._read_again(waiting, stamps)
        elif old and len(stamps) == len(old):
            return old
        return {path: stamp for path, stamp in stamps.items() if stamp is not None}

    def _read_again(self, waiting: list[str], stamps: dict[str, tuple[Stamp, bytes] | None]) -> None:
        trusted = youngest_trusted(self._trees.parent, os.stat(self._prefix).st_dev)
        for number, path in enumerate(waiting, 1):
            try:
                stamp, sha = self._content(path)
            except Unusable as reason:
                self._warnings.append(f"{path} {reason}: it is not in the snapshot")
                stamps[path] = None
            else:
                young = stamp[1] >= trusted or stamp[2] >= trusted
                stamps[path] = (untrusted(stamp) if young else stamp, sha)
            if self._progress is not None:
                self._progress(number, len(waiting))

    def _content(self, path: str) -> tuple[Stamp, bytes]:
        full = self._prefix + path
        try:
            status = os.lstat(full)
            if stat.S_ISLNK(status.st_mode):
                return stamp_of(status), hashlib.sha256(os.fsencode(os.readlink(full))).digest()
        except OSError as error:
            raise Unusable(f"vanished before it was copied ({error.strerror})") from error
        content = self._blobs.add(full)
        self.added += content.added
        if not content.steady:
            self._warnings.append(f"{path} kept changing while it was copied: the snapshot has one state of it")
            return untrusted(stamp_of(content.status)), content.sha
        return stamp_of(content.status), content.sha

    def _leased(self, path: Path) -> Lease | None:
        """A lease of a published tree, or None where there is none."""
        while True:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            lease = Lease(descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if _is_at(descriptor, path):
                return lease
            # It was taken away between the two calls.
            lease.close()

    def _borrowed(self, digest: str, entries: _Entries) -> tuple[Path, _Entries]:
        """A folder to build in, and what it holds: the last snapshot of this root, if nobody holds it, else nothing."""
        staged = Path(tempfile.mkdtemp(prefix=".new-", dir=self._trees))
        staged.chmod(0o755)
        last = self._trees / digest
        try:
            descriptor = os.open(last, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return staged, {}
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_at(descriptor, last):
                return staged, {}
            last.rename(staged)
        except BlockingIOError:
            return staged, {}
        finally:
            os.close(descriptor)
        return staged, entries

    def _fill(self, staged: Path, base: _Entries, entries: _Entries) -> None:
        """Makes a folder that holds ``base`` hold ``entries``."""
        top = os.fspath(staged) + "/"
        changed = [path for path, entry in entries.items() if base.get(path) != entry]
        for path in [path for path, entry in base.items() if entries.get(path) != entry]:
            try:
                os.unlink(top + path)
            except OSError as error:
                # Somebody changed the tree, which then is no base to build on; the next attempt begins without one.
                raise _Outdated from error
            if path not in entries:
                _prune(top, path)
        made = {""}
        for path in changed:
            folder = path.rpartition("/")[0]
            if folder not in made:
                os.makedirs(top + folder, exist_ok=True)
                made.add(folder)
            mode, sha = entries[path]
            if mode == LINK:
                self._link_again(path, sha, top + path)
            else:
                self._place(path, mode, sha, top + path)

    def _link_again(self, path: str, sha: bytes, target: str) -> None:
        try:
            text = os.readlink(self._prefix + path)
        except OSError as error:
            raise _Outdated from error
        if hashlib.sha256(os.fsencode(text)).digest() != sha:
            raise _Outdated
        try:
            os.symlink(text, target)
        except FileExistsError as error:
            raise _Outdated from error

    def _place(self, path: str, mode: int, sha: bytes, target: str) -> None:
        blob = self._blobs.path(sha, mode)
        try:
            os.link(blob, target)
        except FileNotFoundError:
            # Evicted since: the file has what it had, or the attempt is void.
            try:
                content = self._blobs.add(self._prefix + path)
            except Unusable as error:
                raise _Outdated from error
            self.added += content.added
            if content.sha != sha or kept_mode(content.status.st_mode) != mode:
                raise _Outdated from None
            os.link(blob, target)
        except FileExistsError as error:
            # As above. What lies there may be linked to a content, and must not be written over.
            raise _Outdated from error
        except OSError as error:
            if error.errno not in (errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            # Too many links to one content, or a file system without any.
            shutil.copy2(blob, target)

    def _published(self, staged: Path, path: Path) -> Lease:
        """Gives a finished tree its name; where another process was first, theirs is as good."""
        while True:
            lease = self._leased(staged)
            assert lease is not None
            try:
                staged.rename(path)
            except OSError:
                lease.close()
                theirs = self._leased(path)
                if theirs is None:
                    continue
                shutil.rmtree(staged)
                return theirs
            return lease


def _entries(read: dict[str, tuple[Stamp, bytes]]) -> _Entries:
    return {path: (kept_mode(stamp[4]), sha) for path, (stamp, sha) in read.items()}


class _Outdated(Exception):
    """The files are not what they were when they were looked at."""


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _prune(top: str, path: str) -> None:
    """Removes the folders that a removed file leaves empty."""
    while path := path.rpartition("/")[0]:
        try:
            os.rmdir(top + path)
        except OSError:
            return
