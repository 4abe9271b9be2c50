"""Scratch folders: the files of a run that are discarded at its end."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from skyrl_modal.backends.local.run_lock import is_run_alive
from skyrl_modal.backends.local.sandbox import PROBE_PREFIX, Sandbox
from skyrl_modal.backends.temporary_folders import abandoned_folder, remove_tree
from skyrl_modal.user_folders import cache_folder, create_user_folder, make_private_folder


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
        return Path(tempfile.mkdtemp(prefix="skyrl-"))
    root = create_user_folder(scratch_root())
    remove_abandoned_folders(root)
    folder = root / (f"{run_id}.{rank}" if rank else run_id)
    folder.mkdir()
    make_private_folder(folder)
    return folder


def remove_abandoned_folders(root: Path) -> None:
    """Remove the scratch folders and probe folders that no process uses."""
    for folder in root.iterdir():
        with contextlib.suppress(OSError):  # another process may remove it at the same time
            if folder.name.startswith(PROBE_PREFIX):
                with abandoned_folder(folder) as is_abandoned:
                    if is_abandoned:
                        remove_tree(folder)
            elif not is_run_alive(folder.name.partition(".")[0]):
                remove_tree(folder)
