"""The copy of a selection that a run sees, made once for a given content."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from attrs import Attribute, field, frozen

from skyrl_modal.errors import SpecError
from skyrl_modal.mount.blobs import LINK, Blobs, Unusable, digest_of, kept_mode
from skyrl_modal.mount.selection import Selection
from skyrl_modal.mount.stamps import Stamp, Stamps, stamp_of, untrusted, youngest_trusted

Progress = Callable[[int, int], None]
"""Called with the number of files that were read and of those that have to be."""

# Trees that nobody holds; each costs a folder entry for each of its files.
_MAX_TREES = 32
_ATTEMPTS = 3
_Entries = dict[str, tuple[int, bytes]]


def _absolute(folder: str | os.PathLike[str]) -> Path:
    return Path(folder).expanduser().absolute()


def _is_limit(_: object, attribute: Attribute[int], value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise SpecError(attribute.name, value, "give a number of bytes, 0 or more")


class _Lease:
    """An open descriptor of a snapshot's folder with a shared lock on it, closed with its owner."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.close = weakref.finalize(self, os.close, descriptor)


@frozen
class Snapshot:
    """A folder that holds exactly the files of a selection, as they were when it was taken.

    It is leased to who took it: it is not evicted while this object lives, or until ``release``; also usable in a
    ``with``. Its files are shared with other snapshots and must not be written to.

    Attributes:
        path: The folder.
        digest: Over paths, permissions and contents.
        files: How many there are.
        bytes: What they amount to.
        warnings: Files that could not be copied, or changed on the way.
    """

    path: Path
    digest: str
    files: int
    bytes: int
    warnings: tuple[str, ...] = ()
    _lease: _Lease = field(kw_only=True, repr=False, eq=False)

    def hold(self) -> int:
        """A descriptor that keeps the snapshot from being evicted, for as long as it or a copy of it is open.

        It is inherited by child processes that are started with it (``pass_fds``), and its owner closes it.

        Raises:
            SpecError: The snapshot was released.
        """
        if not self._lease.close.alive:
            raise SpecError("snapshot", str(self.path), "was released: take it again")
        descriptor = os.dup(self._lease.descriptor)
        os.set_inheritable(descriptor, True)
        return descriptor

    def release(self) -> None:
        """Lets go of the snapshot; what holds it by a descriptor of its own goes on holding it."""
        self._lease.close()

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@frozen
class SnapshotStore:
    """Snapshots on this machine, the least recently used of which are removed when they grow too many.

    Any number of processes may use one store at once.

    Args:
        folder: Where they lie; made where it is absent. It should be on the file system of the checkout, where contents
            can then be shared with it instead of copied, if that file system can.
        max_bytes: What the contents may amount to before those that nobody holds are removed.

    Example:
        >>> import pathlib, tempfile
        >>> from skyrl_modal.mount import select
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> (folder / "code").mkdir()
        >>> _ = (folder / "code" / "train.py").write_text("print(1)")
        >>> store = SnapshotStore(folder / "store")
        >>> with store.take(select(folder / "code")) as snapshot:
        ...     (snapshot.path / "train.py").read_text()
        'print(1)'
    """

    folder: Path = field(converter=_absolute)
    max_bytes: int = field(default=20 * 1024**3, validator=_is_limit, kw_only=True)

    def take(self, selection: Selection, *, progress: Progress | None = None) -> Snapshot:
        """The snapshot of a selection; an earlier one where the content is the same.

        A file that is gone or cannot be read by now is left out and told in the snapshot's ``warnings``.

        Args:
            selection: What to take.
            progress: Called after each file that had to be read, with how many were and how many have to be.

        Raises:
            SpecError: The store lies in the selected folder, or the selection's root is gone.
        """
        self._prepare(selection)
        with self._locked(fcntl.LOCK_SH):
            for _ in range(_ATTEMPTS):
                taking = _Taking(self, selection, progress)
                snapshot = taking.run()
                if snapshot is not None:
                    break
            else:
                raise SpecError("selection", str(selection.root), "changes faster than it can be copied: try again")
        if taking.added or taking.built:
            self._evict(taking.added)
        return snapshot

    def _prepare(self, selection: Selection) -> None:
        if self.folder.is_relative_to(selection.root) and any(
            (selection.root / path).is_relative_to(self.folder) for path in selection.files
        ):
            raise SpecError("folder", str(self.folder), "the store lies among the files to copy: move it out")
        for name in ("blobs", "trees", "stamps"):
            (self.folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)

    @property
    def _blobs(self) -> Blobs:
        return Blobs(self.folder / "blobs")

    @contextmanager
    def _locked(self, kind: int) -> Iterator[bool]:
        """Holds the store's lock: shared by those who build, exclusive for who removes."""
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, kind)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)

    def _evict(self, added: int) -> None:
        """Removes what is too much, if nobody is building; who builds next looks again."""
        counter = self.folder / "usage"
        with self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB) as alone:
            if not alone:
                return
            trees = self.folder / "trees"
            known = counter.read_text() if counter.exists() else ""
            usage = int(known) + added if known.isdigit() else None
            names = os.listdir(trees)
            if usage is None or usage > self.max_bytes or len(names) > _MAX_TREES:
                usage = self._shrink(trees, names)
            counter.write_text(str(usage))

    def _shrink(self, trees: Path, names: list[str]) -> int:
        for name in names:
            if name.startswith("."):
                # Whoever was building it is gone, since nobody builds now.
                shutil.rmtree(trees / name)
        oldest = [name for name in names if not name.startswith(".")]
        oldest.sort(key=lambda name: (trees / name).stat().st_mtime)
        total, idle = self._blobs.unlinked()
        while total > self.max_bytes or len(oldest) > _MAX_TREES:
            if idle and total > self.max_bytes:
                for path, size in idle:
                    os.unlink(path)
                    total -= size
                idle = []
            elif oldest:
                if _removed(trees, oldest.pop(0)):
                    total, idle = self._blobs.unlinked()
            else:
                break
        return total


def _removed(trees: Path, name: str) -> bool:
    """Removes a tree that nobody holds."""
    descriptor = os.open(trees / name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        gone = trees / f".gone-{name}"
        (trees / name).rename(gone)
        shutil.rmtree(gone)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


class _Taking:
    """One attempt to take a snapshot."""

    def __init__(self, store: SnapshotStore, selection: Selection, progress: Progress | None) -> None:
        self._blobs, self._trees = Blobs(store.folder / "blobs"), store.folder / "trees"
        self._selection, self._progress = selection, progress
        root = os.fsencode(selection.root)
        self._stamps_path = store.folder / "stamps" / hashlib.sha256(root).hexdigest()
        self._prefix = os.fspath(selection.root) + "/"
        self._warnings: list[str] = []
        self._bytes = 0
        self.added = 0
        self.built = False

    def run(self) -> Snapshot | None:
        """The snapshot, or None where the files changed so that the attempt has to be made again."""
        known = Stamps.load(self._stamps_path)
        entries, fresh = self._read(known)
        digest = digest_of((path, mode, sha) for path, (mode, sha) in entries.items())
        path = self._trees / digest
        lease = self._leased(path)
        if lease is None:
            old = {name: (kept_mode(stamp[4]), sha) for name, (stamp, sha) in known.entries.items()}
            staged, base = self._borrowed(known.digest.hex(), old)
            try:
                self._fill(staged, base, entries)
            except _Outdated:
                shutil.rmtree(staged)
                return None
            lease = self._published(staged, path)
            self.built = True
        else:
            os.utime(path)
        if fresh or known.digest.hex() != digest:
            Stamps(bytes.fromhex(digest), fresh or known.entries).save(self._stamps_path)
        return Snapshot(path, digest, len(entries), self._bytes, tuple(self._warnings), lease=lease)

    def _read(self, known: Stamps) -> tuple[_Entries, dict[str, tuple[Stamp, bytes]]]:
        """The selected files as they are, and their stamps where these differ from the known ones."""
        stamps: dict[str, tuple[Stamp, bytes] | None] = {}
        waiting: list[str] = []
        old = known.entries
        prefix, lstat = self._prefix, os.lstat
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
        read = {path: stamp for path, stamp in stamps.items() if stamp is not None}
        entries = {path: (kept_mode(stamp[4]), sha) for path, (stamp, sha) in read.items()}
        return entries, read if waiting or len(read) != len(old) else {}

    def _read_again(self, waiting: list[str], stamps: dict[str, tuple[Stamp, bytes] | None]) -> None:
        try:
            device = os.stat(self._selection.root).st_dev
        except FileNotFoundError as error:
            raise SpecError("root", str(self._selection.root), "is gone since it was selected") from error
        trusted = youngest_trusted(self._trees.parent, device)
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

    def _leased(self, path: Path) -> _Lease | None:
        """A lease of a published tree, or None where there is none."""
        while True:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            lease = _Lease(descriptor)
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
            os.unlink(top + path)
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
        os.symlink(text, target)

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
        except OSError:
            # Too many links to one content, or a file system without any.
            shutil.copy2(blob, target)

    def _published(self, staged: Path, path: Path) -> _Lease:
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
