"""Removal of what is not needed any more: snapshots, files that killed processes have left, and old records of runs.

Volumes, results and logs are never removed. Whatever an active process uses is locked by it, and is not removed.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path

from attrs import field, frozen

from skyrl_modal.backends import Backend, get_backend, installed_backends
from skyrl_modal.backends.staging import abandoned_transfers
from skyrl_modal.backends.temporary_folders import remove_tree
from skyrl_modal.errors import BackendUnavailable, RecordError, SkyRLModalError
from skyrl_modal.machine import tree_size
from skyrl_modal.mount import SnapshotStore
from skyrl_modal.run.handle import Run
from skyrl_modal.run.index import RunIndex
from skyrl_modal.run.spending import final_cost_path
from skyrl_modal.spec.duration import parse_duration
from skyrl_modal.user_folders import cache_folder


@frozen
class RemovedEntries:
    """What was removed of one kind.

    Attributes:
        kind: What it is, for example ``"snapshots"``.
        number: How many.
        bytes: Their size.
    """

    kind: str
    number: int
    bytes: int


@frozen
class CleanUpReport:
    """What ``clean_up`` removed.

    Attributes:
        removed: The number and size for each kind.
        kept: Messages about what is old and was kept, with the reason.
        failures: Messages about what could not be removed.
    """

    removed: list[RemovedEntries] = field(factory=list)
    kept: list[str] = field(factory=list)
    failures: list[str] = field(factory=list)

    def count(self, kind: str, entries: Iterable[tuple[Path, int]], remove: Callable[[Path], bool] | None) -> None:
        """Remove entries and count those that were removed.

        Args:
            kind: What they are.
            entries: Path and size of each.
            remove: Removes one, and returns whether it is removed; None to remove nothing.
        """
        number = size = 0
        for path, entry_size in entries:
            try:
                is_removed = remove is None or remove(path)
            except OSError as error:
                self.failures.append(f"{path}: {error.strerror}")
                continue
            if is_removed:
                number, size = number + 1, size + entry_size
            else:
                self.failures.append(f"{path} could not be removed completely")
        self.removed.append(RemovedEntries(kind, number, size))


def clean_up(*, older_than: float | str | timedelta | None = None, dry_run: bool = False) -> CleanUpReport:
    """Remove snapshots, scratch folders of runs that were killed, and half-written files.

    Args:
        older_than: Keep snapshots that were used more recently than this; and remove records of runs that have ended
            and are older. None: remove all snapshots that are not in use, and no records.
        dry_run: Whether to remove nothing, and return what would be removed.

    Raises:
        SpecError: ``older_than`` is not a duration.

    Example:
        >>> [entry.kind for entry in clean_up(dry_run=True).removed]  # doctest: +SKIP
        ['snapshots', 'scratch folders', 'half-written files', 'records of runs']
    """
    now = time.time()
    before = None if older_than is None else now - parse_duration(older_than, name="older_than")
    report = CleanUpReport()
    _remove_snapshots(report, math.inf if before is None else before, dry_run)
    report.count("scratch folders", _sized(_abandoned_folders()), None if dry_run else remove_tree)
    report.count("half-written files", _half_written(), None if dry_run else _remove)
    _remove_records(report, before, dry_run)
    return report


def _remove_snapshots(report: CleanUpReport, used_before: float, dry_run: bool) -> None:
    store = SnapshotStore(cache_folder() / "snapshots")
    try:
        removed = store.remove_unused(used_before=used_before, dry_run=dry_run)
    except OSError as error:
        report.failures.append(f"{error.filename or store.folder}: {error.strerror}")
        return
    if removed is None:
        report.kept.append(f"{store.folder} was not cleaned: another process takes a snapshot now")
        return
    report.removed.append(RemovedEntries("snapshots", removed.number, removed.bytes))


def _backends() -> Iterator[Backend]:
    for name in installed_backends():
        with contextlib.suppress(BackendUnavailable):
            yield get_backend(name)


def _abandoned_folders() -> Iterator[Path]:
    for backend in _backends():
        find = getattr(backend, "abandoned_folders", None)
        if find is not None:
            yield from find()


def _sized(folders: Iterable[Path]) -> Iterator[tuple[Path, int]]:
    for folder in folders:
        yield folder, tree_size(folder)


def _half_written() -> Iterator[tuple[Path, int]]:
    yield from _sized(staging for _, staging in abandoned_transfers())
    for path in RunIndex().unfinished_files():
        yield path, path.lstat().st_size


def _remove(path: Path) -> bool:
    if path.is_dir() and not path.is_symlink():
        return remove_tree(path)
    path.unlink(missing_ok=True)
    return True


def _remove_records(report: CleanUpReport, before: float | None, dry_run: bool) -> None:
    index = RunIndex()
    old = [] if before is None else index.written_before(before)
    entries = [(path, path.lstat().st_size) for path in old if _has_ended(index, path, report)]

    def remove(path: Path) -> bool:
        path.unlink(missing_ok=True)
        final_cost_path(path.stem).unlink(missing_ok=True)
        for backend in _backends():
            forget = getattr(backend, "forget", None)
            if forget is not None:
                forget(path.stem)
        return True

    report.count("records of runs", entries, None if dry_run else remove)


def _has_ended(index: RunIndex, path: Path, report: CleanUpReport) -> bool:
    """Return whether the run of a record has ended. A reason why this is not known is reported."""
    try:
        record = index.read_file(path)
        if record is None:
            return False
        run = Run._from_record(record)
        if run.unavailable_reason is not None:
            report.kept.append(f"the record of run {path.stem} was kept: {run.unavailable_reason}")
            return False
        state = run.state
    except RecordError as error:
        report.kept.append(f"the record of run {path.stem} was kept, since {error}")
        return False
    except Exception as error:  # any error of a backend that another package may provide
        text = str(error) if isinstance(error, SkyRLModalError) else f"{type(error).__name__}: {error}"
        report.kept.append(f"the record of run {path.stem} was kept: its state is not known ({text})")
        return False
    if not state.is_final:
        report.kept.append(f"the record of run {path.stem} was kept: the run is {state}")
    return state.is_final
