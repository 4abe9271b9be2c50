"""One attempt to take a snapshot: read the changed files, build the tree on an earlier one, publish it in one step."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

from skyrl_modal.errors import SnapshotError
from skyrl_modal.gitfiles.digest import LINK_MODE, link_digest, normalized_mode, tree_digest
from skyrl_modal.gitfiles.selection import Selection
from skyrl_modal.snapshots.content_pool import UNFINISHED_PREFIX, ContentPool, FileNotCopied
from skyrl_modal.snapshots.file_stamps import (
    FileStamps,
    Records,
    entries_of,
    latest_trusted_time,
    split_stamps,
    stamps_of,
    without_trusted_size,
)
from skyrl_modal.snapshots.snapshot import SharedLock, Snapshot, is_at, lock_tree
from skyrl_modal.snapshots.usage import Additions

_Entries = dict[str, tuple[int, bytes]]
_SIZE = attrgetter("st_size")
# Number of changed files from which on several processes copy them: these save more time than their start takes.
_MANY = 500


class Capture:
    """One attempt to take a snapshot.

    Args:
        store: The folder of the store.
        selection: The files to copy.
        additions: Adds contents to the pool of the store.
        as_selected: Whether the statuses of the selection are used to recognise unchanged files.

    Attributes:
        built: Whether a new tree was built.
    """

    def __init__(self, store: Path, selection: Selection, additions: Additions, *, as_selected: bool) -> None:
        self._as_selected = as_selected
        self._pool, self._trees = ContentPool(store / "blobs"), store / "trees"
        self._additions = additions
        self._selection = selection
        root = os.fsencode(selection.root)
        self._stamps_path = store / "stamps" / hashlib.sha256(root).hexdigest()
        self._prefix = os.fspath(selection.root) + "/"
        self._warnings: list[str] = []
        self._bytes = 0
        # A tree in which files are linked while they are copied, if there is no earlier tree, and the paths in it.
        self._new_tree: Path | None = None
        self._linked: list[str] = []
        self.built = False

    def run(self) -> Snapshot | None:
        """Return the snapshot, or None if files changed meanwhile and another attempt is needed.

        Raises:
            SnapshotError: The root was removed.
            OSError: The store cannot be written to. No unfinished tree remains.
        """
        try:
            return self._run(FileStamps.load(self._stamps_path))
        finally:
            if self._new_tree is not None:
                import shutil  # imported here, since it takes time

                shutil.rmtree(self._new_tree, ignore_errors=True)

    def _run(self, known: FileStamps) -> Snapshot | None:
        read = self._read(known)
        entries: _Entries = {}
        if read is None:
            digest, files = known.digest.hex(), known.count
        else:
            entries, files = entries_of(read), len(read)
            digest = tree_digest((path, mode, sha) for path, (mode, sha) in entries.items())
        path = self._trees / digest
        lock = lock_tree(path)
        if lock is None:
            import shutil  # imported here, since it takes time

            before = known.entries()
            staged, base = self._take_new_tree(entries) or self._reuse_previous_tree(known.digest.hex(), before)
            try:
                self._update_tree(staged, base, before if read is None else entries)
                lock = self._publish_tree(staged, path)
            except _SourceChanged:
                shutil.rmtree(staged)
                return None
            except BaseException:
                shutil.rmtree(staged, ignore_errors=True)
                raise
            self.built = True
        else:
            os.utime(path)
        if read is not None:
            try:
                FileStamps.of(digest, read).save(self._stamps_path)
            except BaseException:
                lock.close()
                raise
        return Snapshot(path, digest, files, self._bytes, tuple(self._warnings), lock=lock, stamps=self._stamps_path)

    def _read(self, known: FileStamps) -> Records | None:
        """Return stamps and digests of the selected files; None if they are the known ones."""
        if not os.path.isdir(self._prefix):
            raise SnapshotError(str(self._selection.root), "the folder was removed after the selection")
        if not known.shas:
            return self._read_all()
        paths, statuses = self._read_statuses()
        self._bytes = sum(map(_SIZE, statuses))
        stamps = stamps_of(statuses)
        if known.shas and known.stamps == stamps and known.names == os.fsencode("\0".join(paths)):
            return None
        old = known.records()
        records = {path: old.get(path) for path in paths}
        changed = [
            path
            for path, stamp in zip(paths, split_stamps(stamps), strict=True)
            if (before := records[path]) is None or before[0] != stamp
        ]
        if changed:
            self._read_changed(changed, records, has_tree=(self._trees / known.digest.hex()).is_dir())
        return {path: record for path, record in records.items() if record is not None}

    def _read_all(self) -> Records:
        """Return stamps and digests of the selected files, of which none is known."""
        paths = self._selection.files
        records: dict[str, tuple[bytes, bytes] | None] = dict.fromkeys(paths)
        if paths:
            self._bytes = self._read_changed(paths, records, has_tree=False)
        return {path: record for path, record in records.items() if record is not None}

    def _read_statuses(self) -> tuple[Sequence[str], Sequence[os.stat_result]]:
        """Return the selected files that exist, and the status of each."""
        prefix, paths = self._prefix, self._selection.files
        if self._as_selected:
            known = [status for status in self._selection.statuses if status is not None]
            if len(known) == len(paths):
                return paths, known
        with contextlib.suppress(OSError):
            return paths, list(map(os.lstat, [prefix + path for path in paths]))
        found: list[str] = []
        left: list[os.stat_result] = []
        for path in paths:
            try:
                left.append(os.lstat(prefix + path))
            except OSError as error:
                removed = isinstance(error, (FileNotFoundError, NotADirectoryError))
                self._warn(path, "was removed" if removed else f"cannot be read ({error.strerror})")
            else:
                found.append(path)
        return found, left

    def _warn(self, path: str, reason: str) -> None:
        self._warnings.append(f"{path} {reason}: it is not in the snapshot")

    def _read_changed(
        self, changed: Sequence[str], records: dict[str, tuple[bytes, bytes] | None], *, has_tree: bool
    ) -> int:
        """Store the contents of files, update their records, and return the size of the files.

        Args:
            changed: The paths.
            records: Receives stamps and digests; None for a file that could not be copied.
            has_tree: Whether there is an earlier tree, on which the new one can be built.
        """
        latest_trusted = latest_trusted_time(self._trees.parent, os.stat(self._prefix).st_dev)
        total = 0
        if len(changed) >= _MANY:
            changed, total = self._copy_many(changed, records, latest_trusted, has_tree=has_tree)
        for path in changed:
            content = self._store_content(path)
            if isinstance(content, FileNotCopied):
                self._warn(path, str(content))
                records[path] = None
                continue
            status, sha, unchanged = content
            total += status.st_size
            if not unchanged:
                self._warnings.append(
                    f"{path} kept changing while it was copied: the snapshot contains one of its states"
                )
            stamp = stamps_of([status])
            if not unchanged or status.st_mtime_ns >= latest_trusted or status.st_ctime_ns >= latest_trusted:
                stamp = without_trusted_size(stamp)
            records[path] = (stamp, sha)
        return total

    def _copy_many(
        self,
        changed: Sequence[str],
        records: dict[str, tuple[bytes, bytes] | None],
        latest_trusted: int,
        *,
        has_tree: bool,
    ) -> tuple[list[str], int]:
        """Copy files with several processes. Return the other paths, and the size of the files that were copied."""
        from skyrl_modal.snapshots.bulk_copy import copy_files  # other snapshots do not need it

        self._additions.begin()
        if not has_tree:
            self._new_tree = self._create_tree()
        lock, total, is_copied = self._trees.parent / "lock", 0, bytearray(len(changed))
        for position, is_linked, size, added, stamp, sha in copy_files(
            self._pool, lock, self._prefix, changed, tree=self._new_tree, latest_trusted=latest_trusted
        ):
            path = changed[position]
            records[path] = (stamp, sha)
            is_copied[position] = True
            total += size
            self._additions.bytes += added
            if is_linked:
                self._linked.append(path)
        rest = [path for path, done in zip(changed, is_copied, strict=True) if not done]
        if self._new_tree is not None:
            for path in rest:  # a process that was killed has linked files that it did not report
                with contextlib.suppress(OSError):
                    os.unlink(self._new_tree / path)
        return rest, total

    def _store_content(self, path: str) -> tuple[os.stat_result, bytes, bool] | FileNotCopied:
        """Store the content of a file.

        Returns:
            Its status, its digest and whether it was unchanged while it was read; or why it could not be copied.
        """
        full = self._prefix + path
        try:
            status = os.lstat(full)
            if stat.S_ISLNK(status.st_mode):
                return status, link_digest(os.readlink(full)), True
        except OSError as error:
            return FileNotCopied(f"was removed before it was copied ({error.strerror})")
        try:
            content = self._additions.add(full)
        except FileNotCopied as reason:
            return reason
        return content.status, content.sha, content.unchanged_while_read

    def _create_tree(self) -> Path:
        """Create an empty folder for a tree."""
        import tempfile  # imported here, since it takes time

        staged = Path(tempfile.mkdtemp(prefix=UNFINISHED_PREFIX, dir=self._trees))
        staged.chmod(0o755)
        return staged

    def _take_new_tree(self, entries: _Entries) -> tuple[Path, _Entries] | None:
        """Return the tree in which files were linked while they were copied, and its content; None if there is none."""
        if self._new_tree is None:
            return None
        staged, self._new_tree = self._new_tree, None
        return staged, {path: entries[path] for path in self._linked}

    def _reuse_previous_tree(self, digest: str, entries: _Entries) -> tuple[Path, _Entries]:
        """Return a folder to build in and its content: the previous tree if it is not locked, otherwise nothing."""
        staged = self._create_tree()
        previous = self._trees / digest
        try:
            descriptor = os.open(previous, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return staged, {}
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not is_at(descriptor, previous):
                return staged, {}
            previous.rename(staged)
        except BlockingIOError:
            return staged, {}
        finally:
            os.close(descriptor)
        return staged, entries

    def _update_tree(self, staged: Path, base: _Entries, entries: _Entries) -> None:
        """Change a folder that contains ``base`` so that it contains ``entries``.

        Raises:
            _SourceChanged: A file has changed since it was read, or the folder does not contain ``base``.
        """
        top = os.fspath(staged) + "/"
        changed = [path for path, entry in entries.items() if base.get(path) != entry]
        for path in [path for path, entry in base.items() if entries.get(path) != entry]:
            try:
                os.unlink(top + path)
            except OSError as error:
                # Another program changed the tree, so it cannot be used; the next attempt begins without it.
                raise _SourceChanged from error
            if path not in entries:
                _remove_empty_parents(top, path)
        for folder in dict.fromkeys(path.rpartition("/")[0] for path in changed):
            os.makedirs(top + folder, exist_ok=True)
        for path in changed:
            mode, sha = entries[path]
            if mode == LINK_MODE:
                self._create_link(path, sha, top + path)
            else:
                self._create_file(path, mode, sha, top + path)

    def _create_link(self, path: str, sha: bytes, target: str) -> None:
        try:
            text = os.readlink(self._prefix + path)
        except OSError as error:
            raise _SourceChanged from error
        if link_digest(text) != sha:
            raise _SourceChanged
        try:
            os.symlink(text, target)
        except FileExistsError as error:
            raise _SourceChanged from error

    def _create_file(self, path: str, mode: int, sha: bytes, target: str) -> None:
        stored = self._pool.path(sha, mode)
        try:
            os.link(stored, target)
        except FileNotFoundError:
            # The content was evicted: it is stored again, if the file still has it.
            try:
                content = self._additions.add(self._prefix + path)
            except FileNotCopied as error:
                raise _SourceChanged from error
            if content.sha != sha or normalized_mode(content.status.st_mode) != mode:
                raise _SourceChanged from None
            os.link(stored, target)
        except FileExistsError as error:
            # Another program changed the tree. The existing file may be a link to a content and must not be written.
            raise _SourceChanged from error
        except OSError as error:
            if error.errno not in (errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV):
                raise
            # The content has too many links, or the file system supports none, or the trees are on another one.
            import shutil  # imported here, since it takes time

            shutil.copy2(stored, target)

    def _publish_tree(self, staged: Path, path: Path) -> SharedLock:
        """Rename a finished tree to its final name. If another process has published the same tree, use that one."""
        while True:
            lock = lock_tree(staged)
            if lock is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(staged))
            try:
                staged.rename(path)
            except OSError as error:
                lock.close()
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                published = lock_tree(path)
                if published is None:
                    continue
                import shutil  # imported here, since it takes time

                shutil.rmtree(staged)
                return published
            return lock


class _SourceChanged(Exception):
    """The files, or the tree to build on, have changed since they were read."""


def _remove_empty_parents(top: str, path: str) -> None:
    """Remove the folders that are empty after a file was removed."""
    while path := path.rpartition("/")[0]:
        try:
            os.rmdir(top + path)
        except OSError:
            return
