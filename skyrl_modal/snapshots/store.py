"""The copy of a selection that a run sees, made once for a given content."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import Attribute, field, frozen

from skyrl_modal.errors import SpecError
from skyrl_modal.gitfiles.selection import Selection
from skyrl_modal.snapshots.capture import Progress, Taking
from skyrl_modal.snapshots.content_pool import Blobs
from skyrl_modal.snapshots.snapshot import Snapshot

# Trees that nobody holds; each costs a folder entry for each of its files.
_MAX_TREES = 32
_ATTEMPTS = 3


def _absolute(folder: str | os.PathLike[str]) -> Path:
    return Path(folder).expanduser().absolute()


def _is_limit(_: object, attribute: Attribute[int], value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise SpecError(attribute.name, value, "give a number of bytes, 0 or more")


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
                taking = Taking(self.folder, selection, progress)
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
