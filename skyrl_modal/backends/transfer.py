"""Transfers of files: a copy is written to a staging folder beside its target, and moved there when it is complete.

A transfer that is killed leaves its staging folder only, and nothing incomplete at the target. The next transfer
between the same places continues with it; ``skyrl-modal clean`` removes it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from skyrl_modal.backends.publishing import flush_tree, publish
from skyrl_modal.backends.staged_files import StagedFiles
from skyrl_modal.backends.staging import (
    remove_abandoned_transfers,
    remove_unlisted_transfers,
    staging_folder,
    transfer_key,
)
from skyrl_modal.backends.storage import check_no_special_file, is_folder, storage_errors

#: Limit for the removal of what killed transfers left, before a transfer begins.
_REMOVAL_SECONDS = 5.0


@contextlib.contextmanager
def staged_transfer(target: Path, source: str) -> Iterator[StagedFiles]:
    """Write a file or folder in one step.

    A new file or folder appears complete or not at all. If the target is an existing folder, the new content is merged
    into it: each file appears complete, and the files are moved there only after all of them are written. A symbolic
    link at the target is replaced by a file, and is never followed.

    Args:
        target: The path of the new file or folder. Parents that do not exist are created.
        source: Identifies what is copied, so that a killed transfer can be continued.

    Yields:
        The files to write. At the end of the ``with`` block they are moved to the target. After an error they are
        removed; after Ctrl-C, or if the backend is not available any more, they are kept for the next transfer.

    Raises:
        StorageError: The target cannot be written, or is a special file; or a link or file is where a folder has to be,
            or a folder where a file has to be. The target is unchanged.
    """
    check_no_special_file(target)
    remove_abandoned_transfers(time.monotonic() + _REMOVAL_SECONDS)
    created: list[Path] = []
    try:
        with contextlib.ExitStack() as stack:
            with storage_errors(target):
                created += _create_folders(target.parent)
                # In the target itself if it is a folder: its parent may be on another file system, or not writable.
                parent = target if is_folder(target) else target.parent
                remove_unlisted_transfers(parent)
                folder = stack.enter_context(staging_folder(parent, transfer_key(source, target)))
            files = StagedFiles(folder)
            yield files
            with storage_errors(target):
                flush_tree(files.item)
                publish(files.item, target)
    except BaseException:
        for folder in reversed(created):
            with contextlib.suppress(OSError):  # the staging folder that is kept is in it
                folder.rmdir()
        raise


def _create_folders(folder: Path) -> list[Path]:
    """Create a folder and its parents; return those that did not exist, outermost first."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    missing.reverse()
    for path in missing:
        path.mkdir(exist_ok=True)
    return missing
