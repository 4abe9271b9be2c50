"""Staging folders: where a transfer writes, beside its target, before it moves the complete copy there.

The user's state folder has a link to each staging folder. Its name begins with a key of the source and the target, by
which the next transfer between them finds the files that a killed one has copied. Only a folder that such a link leads
to is used again: names in it that a run on a shared volume could have guessed or created are not trusted.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from skyrl_modal.backends.temporary_folders import abandoned_folder, locked_temporary_folder, remove_tree
from skyrl_modal.errors import BackendUnavailable, StorageError
from skyrl_modal.user_folders import create_user_folder, state_folder

#: What the names of staging folders begin with.
STAGING_PREFIX = ".skyrl-modal-transfer-"
#: How long what a killed transfer has copied is kept for the next one.
KEPT_SECONDS = 7 * 86400.0
#: Identifies the current start of the system. Files that were not flushed before a power failure may be incomplete.
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_KEY_LENGTH = 32


def transfer_key(source: str, target: Path) -> str:
    """Return the key of a transfer. It is the same for each transfer between the same places, until a restart.

    Args:
        source: Identifies what is copied.
        target: The path of the copy.
    """
    import hashlib  # imported here, since the start of a run only removes old staging folders

    try:
        boot = _BOOT_ID.read_text()
    except OSError:  # not Linux
        boot = ""
    parts = "\0".join((boot, source, os.path.abspath(target)))
    return hashlib.sha256(parts.encode("utf-8", "surrogateescape")).hexdigest()[:_KEY_LENGTH]


@contextlib.contextmanager
def staging_folder(parent: Path, key: str) -> Iterator[Path]:
    """Create a staging folder, or continue with that of a killed transfer with the same key.

    It is removed at the end of the ``with`` block, also after an error. It is kept for the next transfer if this one is
    interrupted by Ctrl-C, or if the backend is not available any more.

    Raises:
        OSError: It cannot be created.
    """
    with contextlib.ExitStack() as stack:
        link, staging = _find(stack, parent, key) or _create(stack, parent, key)
        try:
            yield staging
        except (KeyboardInterrupt, BackendUnavailable):
            raise
        except BaseException:
            _remove(link, staging)
            raise
        _remove(link, staging)


def _find(stack: contextlib.ExitStack, parent: Path, key: str) -> tuple[Path, Path] | None:
    """Lock and return the link and the staging folder of a killed transfer; None if there is none."""
    for link, staging in _listed_transfers():
        if link.name.startswith(key) and staging.parent == parent.absolute():
            attempt = contextlib.ExitStack()
            if attempt.enter_context(abandoned_folder(staging)):
                stack.push(attempt)
                with contextlib.suppress(OSError):
                    os.utime(link, follow_symlinks=False)
                return link, staging
            attempt.close()
    return None


def _create(stack: contextlib.ExitStack, parent: Path, key: str) -> tuple[Path, Path]:
    staging = stack.enter_context(locked_temporary_folder(parent, STAGING_PREFIX))
    link = transfers_folder() / f"{key}-{staging.name.removeprefix(STAGING_PREFIX)}"
    # If the state folder cannot be written, only a later transfer to the same folder finds the staging folder.
    with contextlib.suppress(OSError, StorageError):
        create_user_folder(link.parent)
        link.symlink_to(staging.absolute())
    return link, staging


def _remove(link: Path, staging: Path) -> None:
    if remove_tree(staging):
        with contextlib.suppress(OSError):
            link.unlink(missing_ok=True)


# -- staging folders of killed transfers -------------------------------------------------------------------------------


def transfers_folder() -> Path:
    """Return the folder with a link to the staging folder of each active or killed transfer."""
    return state_folder() / "transfers"


def _listed_transfers() -> Iterator[tuple[Path, Path]]:
    """Yield each link and the staging folder that it leads to. Links that lead nowhere are removed."""
    try:
        links = sorted(transfers_folder().iterdir())
    except OSError:
        return
    for link in links:
        try:
            staging = Path(os.readlink(link))
        except OSError:
            continue  # the transfer has ended, or this is no link
        if not staging.is_absolute() or not staging.name.startswith(STAGING_PREFIX):
            continue
        if os.path.lexists(staging):
            yield link, staging
        else:
            with contextlib.suppress(OSError):
                link.unlink(missing_ok=True)


def abandoned_transfers() -> Iterator[tuple[Path, Path]]:
    """Yield the link to, and the path of, each staging folder whose transfer was killed. It is locked meanwhile."""
    for link, staging in _listed_transfers():
        with abandoned_folder(staging) as is_abandoned:
            if is_abandoned:
                yield link, staging


def remove_abandoned_transfers(deadline: float | None = None) -> None:
    """Remove the staging folders of transfers that were killed more than ``KEPT_SECONDS`` ago.

    Args:
        deadline: Time of ``time.monotonic`` at which to stop; None for no limit.
    """
    for link, staging in abandoned_transfers():
        with contextlib.suppress(OSError):
            if link.lstat().st_mtime < time.time() - KEPT_SECONDS and remove_tree(staging, deadline):
                link.unlink(missing_ok=True)


def remove_unlisted_transfers(parent: Path) -> None:
    """Remove this user's staging folders of killed transfers in a folder that no link leads to."""
    with contextlib.suppress(OSError):
        found = [parent / name for name in os.listdir(parent) if name.startswith(STAGING_PREFIX)]
        if not found:
            return
        listed = {staging for _, staging in _listed_transfers()}
        for staging in found:
            if staging.absolute() not in listed:
                with abandoned_folder(staging) as is_abandoned:
                    if is_abandoned:
                        remove_tree(staging)
