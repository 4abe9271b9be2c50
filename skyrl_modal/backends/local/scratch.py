"""Scratch folders: the files of a run that are discarded at its end."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from skyrl_modal.backends.local.run_lock import is_lock_held, is_run_alive, lock_file
from skyrl_modal.backends.local.sandbox import PROBE_PREFIX, Sandbox
from skyrl_modal.backends.temporary_folders import abandoned_folder, remove_tree
from skyrl_modal.user_folders import cache_folder, create_user_folder, make_private_folder

#: Link in a scratch folder to the lock of its run, which is in the state folder of the process that started the run.
_LOCK_LINK = "run-lock"
#: What the names of scratch folders of runs without a sandbox begin with.
_TEMPORARY_PREFIX = "skyrl-"
#: Limit for the removal of abandoned folders when a run starts. The next start continues.
_REMOVAL_SECONDS = 2.0


def scratch_root() -> Path:
    """Return the folder with the scratch folders of all runs that have a sandbox."""
    return cache_folder() / "scratch"


def create_scratch_folder(run_id: str, rank: int, sandbox: Sandbox | None) -> Path:
    """Create the scratch folder of a rank.

    Folders that were left by callers which were killed while they started a run are removed first.

    Args:
        run_id: The run, whose lock is held already: without it the folder counts as abandoned.
        rank: The rank.
        sandbox: The sandbox of the run; None if it has none.
    """
    if sandbox is None:
        # A short path: Ray's sockets are below it, and the path of a socket has at most 107 characters (unix(7)).
        folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY_PREFIX))
    else:
        root = create_user_folder(scratch_root())
        remove_abandoned_folders(root, time.monotonic() + _REMOVAL_SECONDS)
        folder = root / (f"{run_id}.{rank}" if rank else run_id)
        folder.mkdir()
        make_private_folder(folder)
    (folder / _LOCK_LINK).symlink_to(lock_file(run_id))
    return folder


def remove_abandoned_folders(root: Path, deadline: float | None = None) -> None:
    """Remove the scratch folders and probe folders that no process uses.

    Args:
        root: The folder with the scratch folders.
        deadline: Time of ``time.monotonic`` at which to stop; None for no limit.
    """
    for folder in _abandoned_below(root):
        if not remove_tree(folder, deadline) and deadline is not None and time.monotonic() >= deadline:
            return


def abandoned_folders() -> Iterator[Path]:
    """Yield the scratch folders and probe folders that no process uses, also those of runs without a sandbox."""
    yield from _abandoned_below(scratch_root())
    for folder in _folders(Path(tempfile.gettempdir())):
        # Other programs may use this prefix too: only a folder with the link of a run is one of these.
        is_scratch = folder.name.startswith(_TEMPORARY_PREFIX) and _is_own(folder) and _lock_of(folder) is not None
        if is_scratch and not _is_in_use(folder):
            yield folder


def _abandoned_below(root: Path) -> Iterator[Path]:
    for folder in _folders(root):
        if folder.name.startswith(PROBE_PREFIX):
            with abandoned_folder(folder) as is_abandoned:
                if is_abandoned:
                    yield folder
        elif not is_run_alive(folder.name.partition(".")[0]) and not _is_in_use(folder):
            yield folder


def _folders(root: Path) -> list[Path]:
    try:
        return [folder for folder in sorted(root.iterdir()) if folder.is_dir() and not folder.is_symlink()]
    except OSError:
        return []


def _is_own(folder: Path) -> bool:
    try:
        return folder.lstat().st_uid == os.geteuid()
    except OSError:
        return False


def _is_in_use(folder: Path) -> bool:
    """Return whether the run of a scratch folder is active, also if it has another state folder than this process."""
    lock = _lock_of(folder)
    return lock is not None and is_lock_held(lock)


def _lock_of(folder: Path) -> Path | None:
    """Return the lock of a scratch folder's run; None if there is no link to it."""
    try:
        lock = Path(os.readlink(folder / _LOCK_LINK))
    except OSError:
        return None
    return lock if lock.is_absolute() and lock.name == lock_file("").name else None
